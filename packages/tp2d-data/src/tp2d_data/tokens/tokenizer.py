"""Tokenizers: of the hub, of a folder, or the built-in one.

The built-in one is a byte-level BPE of 4,096 tokens trained on the training split of `builtin:stdlib`; so few tokens
let a tiny model's loss fall within minutes. The same Python library gives the same tokenizer. Cost: about 1 s, once per
machine. Its only special token is the end-of-text token, so its chat template writes roles as plain text and ends every
message with that token.
"""

import logging
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tp2d_data.progress import Progress
from tp2d_data.sources import stdlib
from tp2d_data.sources.hub import hub_reachable, is_hub_name, offline, one_line, unreachable
from tp2d_data.storage import cache_root, hash_of, publish

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

BUILTIN_VOCABULARY = 4096
"""Tokens of the built-in tokenizer."""
END_OF_TEXT = "<|endoftext|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role | capitalize + ':\\n' }}"
    "{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content | trim + eos_token }}{% endgeneration %}"
    "{% else %}{{ message.content | trim + eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:\\n' }}{% endif %}"
)
"""Of the built-in tokenizer."""
_FILE = "tokenizer.json"
_VOCABULARIES = (_FILE, "tekken.json", "vocab.json", "vocab.txt", "*.model", "*.tiktoken")


def load_tokenizer(
    name: str,
    *,
    trust_remote_code: bool = False,
    cache_dir: str | Path | None = None,
    progress: Progress = logger.info,
) -> "PreTrainedTokenizerBase":
    """The tokenizer called `name`, with a padding token: its own, else its end-of-text token.

    Args:
        name: a hub name, a local folder, or `builtin:...` for the built-in tokenizer.
        trust_remote_code: whether code that comes with the tokenizer may run.
        cache_dir: where the built-in tokenizer is kept; see `cache_root`.
        progress: is told where making the built-in tokenizer takes more than some seconds.

    Raises:
        ValueError: no such name or folder, no tokenizer in the folder, the hub does not answer and the tokenizer is
            not cached, code that is not trusted, or neither a padding nor an end-of-text token.
    """
    if name.startswith("builtin:"):
        return _builtin(cache_dir, progress=progress)
    path = Path(name).expanduser()
    if path.is_dir():
        if not any(found for pattern in _VOCABULARIES for found in path.glob(pattern)):
            raise ValueError(
                f"the folder {name} has no tokenizer ({_FILE} or another vocabulary file); "
                "name one with tokenizer_name: a folder, a hub name, or builtin:tiny"
            )
        tokenizer = _from_pretrained(str(path), trust_remote_code)
    elif is_hub_name(name):
        tokenizer = _from_hub(name, trust_remote_code)
    else:
        raise ValueError(f"tokenizer {name}: no such folder; give a folder, a hub name, or builtin:tiny")
    return _with_padding(tokenizer, name)


def _from_hub(name: str, trust_remote_code: bool) -> "PreTrainedTokenizerBase":
    if hub_reachable(name, kind="model"):
        return _from_pretrained(name, trust_remote_code)
    try:
        with offline():
            return _from_pretrained(name, trust_remote_code)
    except ValueError as error:
        raise unreachable(name, kind="model") from error


def _from_pretrained(name: str, trust_remote_code: bool) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ValueError(f"tokenizer {name} cannot be loaded: {one_line(error)}") from error


def _with_padding(tokenizer: "PreTrainedTokenizerBase", name: str) -> "PreTrainedTokenizerBase":
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ValueError(
                f"tokenizer {name} has neither a padding nor an end-of-text token; set pad_token in its "
                "tokenizer_config.json, or name another tokenizer with tokenizer_name"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _builtin(cache_dir: str | Path | None, *, progress: Progress) -> "PreTrainedTokenizerBase":
    from transformers import PreTrainedTokenizerFast

    source = stdlib.StdlibSource(cache_dir, progress=progress)
    identity = {"format": 1, "vocab_size": BUILTIN_VOCABULARY, "text": source.identity("train")}
    folder = cache_root(cache_dir) / "tokenizers" / hash_of(identity)
    publish(folder, lambda temporary: _train(_texts(source), temporary / _FILE))
    return PreTrainedTokenizerFast(
        tokenizer_file=str(folder / _FILE),
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def _texts(source: stdlib.StdlibSource) -> Iterator[str]:
    return (record.values[0] for record in source.records("train", ("text",)))


def _train(texts: Iterator[str], path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=BUILTIN_VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(path))


def encode(
    tokenizer: "PreTrainedTokenizerBase",
    texts: Sequence[str],
    *,
    add_special_tokens: bool = True,
    eos: int | None = None,
) -> list[list[int]]:
    """Token ids of each text, with or without the special tokens the tokenizer adds, neither cut nor padded.

    With `eos` each ends with this token: it is added where it is not there yet.
    """
    if tokenizer.is_fast:
        # The `tokenizers` library itself, on all cores: transformers would put dictionaries of lists around every text.
        return encode_backend(plain_backend(tokenizer), texts, add_special_tokens=add_special_tokens, eos=eos)
    if not texts:
        return []
    options = {"add_special_tokens": add_special_tokens, "return_attention_mask": False, "verbose": False}
    return _ended(tokenizer(list(texts), **options)["input_ids"], eos)


def encode_backend(backend: Any, texts: Sequence[str], *, add_special_tokens: bool, eos: int | None) -> list[list[int]]:
    """As `encode`, with the tokenizer of the `tokenizers` library."""
    encodings = backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
    return _ended([encoding.ids for encoding in encodings], eos)


def _ended(rows: list[list[int]], eos: int | None) -> list[list[int]]:
    return rows if eos is None else [row if row[-1:] == [eos] else [*row, eos] for row in rows]


def tokenizer_identity(tokenizer: "PreTrainedTokenizerBase", *, with_chats: bool = True) -> str:
    """A hash that changes when the tokenizer may give other ids, write a chat otherwise, or end a text otherwise.

    Args:
        tokenizer: of any kind.
        with_chats: whether chats are written with it.
    """
    # Tokens of texts made before the built-in tokenizer had a template, and positions in them, stay valid.
    is_ignored = not with_chats and tokenizer.chat_template == CHAT_TEMPLATE
    template = None if is_ignored else tokenizer.chat_template
    around = [tokenizer.eos_token_id, tokenizer.special_tokens_map, template]
    if tokenizer.is_fast:
        return hash_of([plain_backend(tokenizer).to_str(), *around])
    return hash_of([type(tokenizer).__name__, sorted(tokenizer.get_vocab().items()), repr(tokenizer), *around])


def highest_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The highest id the tokenizer can give, which their number does not tell: ids may have gaps."""
    return max(chain(tokenizer.get_vocab().values(), tokenizer.all_special_ids))


def plain_backend(tokenizer: Any) -> Any:
    """The `tokenizers` object, truncation and padding off, which transformers sets again at each of its own calls."""
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    return backend
