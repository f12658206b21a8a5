"""From a record to its tokens and loss mask: which tokens are trained on.

- `loss_on="all"`: a text; all its tokens are trained on.
- `"completion"`: a prompt and its completion; the completion and the end-of-text token after it are trained on.
- `"assistant"`: a chat; the assistant's turns are trained on; see `chats`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from tp2d_data.sources.records import OPTIONS, Record
from tp2d_data.tokens import chats
from tp2d_data.tokens.tokenizer import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MIN_TOKENS = 2  # an example of one token predicts nothing
LossOn = Literal["all", "completion", "assistant"]
Ids = Sequence[int] | NDArray[np.uint32]


class Encode(Protocol):
    """Token ids of texts, as `tokenizer.encode` gives them for one tokenizer."""

    def __call__(
        self, texts: Sequence[str], *, add_special_tokens: bool = True, eos: int | None = None
    ) -> Sequence[Ids]: ...


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a record is and which of its tokens are trained on; checks itself.

    Args:
        loss_on: `all` of a text, the `completion` after a prompt, or the `assistant`'s turns of a chat.
        text_field: of `all`, the field that has the text.
        prompt_field: of `completion`, the field that has the prompt.
        completion_field: of `completion`, the field that has the completion.
        messages_field: of `assistant`, the field that has the list of messages.

    Raises:
        ValueError: an unknown `loss_on`, an empty field name, or one field for prompt and completion.
    """

    loss_on: LossOn = "all"
    text_field: str = "text"
    prompt_field: str = "prompt"
    completion_field: str = "completion"
    messages_field: str = "messages"

    def __post_init__(self) -> None:
        if self.loss_on not in get_args(LossOn):
            raise ValueError(f"loss_on must be all, completion or assistant, not '{self.loss_on}'")
        for option in ("text_field", "prompt_field", "completion_field", "messages_field"):
            if not getattr(self, option):
                raise ValueError(f"{option} is empty; name a field of the dataset")
        if self.prompt_field == self.completion_field:
            raise ValueError(f"prompt_field and completion_field are both '{self.prompt_field}'; name two fields")

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields this task reads, in the order in which a record has their values."""
        if self.loss_on == "all":
            return (self.text_field,)
        if self.loss_on == "completion":
            return self.prompt_field, self.completion_field
        return (self.messages_field,)

    def identity(self) -> Any:
        """JSON of what the tokens depend on, without the fields that are not read."""
        return [self.loss_on, *self.fields]


@dataclass(frozen=True, kw_only=True)
class Tokenised:
    """The examples of a batch of records."""

    ids: list[Ids]  # one per record kept, in their order
    trained: list[NDArray[np.bool_]] | None  # which of those tokens are labels; None: all
    dropped: dict[str, int]  # how many records are left out, by reason

    def joined(self) -> "Joined":
        """The examples one after the other."""
        lengths = np.fromiter(map(len, self.ids), np.int64, len(self.ids))
        ids = np.concatenate([np.zeros(0, np.uint32), *(np.asarray(ids, np.uint32) for ids in self.ids)])
        return ids, lengths, None if self.trained is None else np.concatenate([*self.trained, np.zeros(0, bool)])


Joined = tuple[NDArray[np.uint32], NDArray[np.int64], NDArray[np.bool_] | None]
"""(tokens,) ids of some examples, (examples,) how many each has, (tokens,) which are trained on (None: all)."""


def check_task(task: Task, tokenizer: "PreTrainedTokenizerBase", *, append_eos: bool = False) -> None:
    """Refuses a tokenizer that cannot do `task`, before a record is read.

    Raises:
        ValueError: no end-of-text token where one is needed, or no chat template that gives a right loss mask.
    """
    if task.loss_on == "completion" or (task.loss_on == "all" and append_eos):
        _eos(tokenizer, "loss_on 'completion'" if task.loss_on == "completion" else "append_eos")
    if task.loss_on == "assistant":
        chats.check_template(tokenizer)


def tokenise(
    records: Sequence[Record],
    *,
    tokenizer: "PreTrainedTokenizerBase",
    task: Task,
    append_eos: bool,
    encoder: Encode | None = None,
) -> Tokenised:
    """The examples of a batch of records, tokenised on all cores.

    - All: the text with the special tokens the tokenizer adds. With `append_eos` the end-of-text token follows, unless
      the tokenizer, or the text itself, has already put it there.
    - Completion: the prompt as at inference (with special tokens, less an end-of-text token the tokenizer adds to
      it), the completion by itself without special tokens, the end-of-text token. `append_eos` changes nothing.
    - Assistant: see `chats.chat_examples`; the template alone decides about special tokens.

    Left out and counted: documents of only white space, prompts without a completion, chats without a turn of the
    assistant, records of fewer than two tokens, records without a token to train on (the first of a row is never
    predicted). Null is an empty text. NUL and other control characters are given to the tokenizer as they are.

    Args:
        encoder: does the tokenizer's work in another process; None: it is done here.

    Raises:
        ValueError: with the record's place: a field of another type, half a surrogate pair, a value that is no chat or
            that the template does not take, a loss mask that is not right. Without: no end-of-text token where one is
            needed.
    """
    dropped: Counter[str] = Counter()
    encoder = encoder or partial(encode, tokenizer)
    match task.loss_on:
        case "all":
            eos = _eos(tokenizer, "append_eos") if append_eos else None
            rows = _texts(records, encoder=encoder, task=task, eos=eos, dropped=dropped)
            ids = [row for row in rows if len(row) >= MIN_TOKENS]
            dropped["fewer than two tokens"] += len(rows) - len(ids)
            return Tokenised(ids=ids, trained=None, dropped=dict(+dropped))
        case "completion":
            pairs = _completions(records, tokenizer=tokenizer, encoder=encoder, task=task, dropped=dropped)
        case "assistant":
            found = chats.chat_examples(records, tokenizer=tokenizer, field=task.messages_field)
            pairs = [pair for pair in found if pair is not None]
            dropped["no assistant turn"] += len(found) - len(pairs)
    kept = [(ids, trained) for ids, trained in pairs if trained[1:].any()]
    dropped["no token to learn"] += len(pairs) - len(kept)
    return Tokenised(ids=[ids for ids, _ in kept], trained=[trained for _, trained in kept], dropped=dict(+dropped))


def as_text(where: str, field: str, value: Any) -> str:
    """A field's value as a text; null is an empty one. Any other value is a ValueError that says where it stands."""
    if value is None:
        return ""
    if not isinstance(value, str):
        chat = "; a chat is read with loss_on 'assistant' and messages_field" if isinstance(value, list) else ""
        kind = type(value).__name__
        raise ValueError(f"{where}: field '{field}' holds a {kind}, not text; choose another with {OPTIONS}{chat}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:  # half of a surrogate pair: JSON can hold it, no tokenizer takes it
            raise ValueError(f"{where}: field '{field}' is not valid Unicode ({error.reason})") from error
    return value


def _texts(
    records: Sequence[Record], *, encoder: Encode, task: Task, eos: int | None, dropped: Counter[str]
) -> Sequence[Ids]:
    texts = [as_text(where, task.text_field, value) for where, (value,) in records]
    filled = [text for text in texts if text and not text.isspace()]
    dropped["empty"] += len(texts) - len(filled)
    return encoder(filled, eos=eos)


def _completions(
    records: Sequence[Record],
    *,
    tokenizer: "PreTrainedTokenizerBase",
    encoder: Encode,
    task: Task,
    dropped: Counter[str],
) -> list[tuple[list[int], NDArray[np.bool_]]]:
    eos = _eos(tokenizer, "loss_on 'completion'")
    pairs = [
        (as_text(where, task.prompt_field, prompt), as_text(where, task.completion_field, completion))
        for where, (prompt, completion) in records
    ]
    filled = [pair for pair in pairs if pair[1] and not pair[1].isspace()]
    dropped["no completion"] += len(pairs) - len(filled)
    prompts = encoder([prompt for prompt, _ in filled])
    if _adds_eos(tokenizer, eos):
        prompts = [prompt[:-1] for prompt in prompts]
    completions = encoder([text for _, text in filled], add_special_tokens=False, eos=eos)
    return [
        ([*prompt, *completion], np.arange(len(prompt) + len(completion)) >= len(prompt))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]


def _eos(tokenizer: "PreTrainedTokenizerBase", need: str) -> int:
    if tokenizer.eos_token_id is None:
        raise ValueError(
            f"tokenizer {tokenizer.name_or_path or type(tokenizer).__name__} has no end-of-text token, which {need} "
            "needs; set eos_token in its tokenizer_config.json, or name another tokenizer with tokenizer_name"
        )
    return int(tokenizer.eos_token_id)


def _adds_eos(tokenizer: "PreTrainedTokenizerBase", eos: int) -> bool:
    """Whether the tokenizer itself ends what it tokenises with `eos`."""
    with_special, without = (encode(tokenizer, ["a"], add_special_tokens=special)[0] for special in (True, False))
    return with_special[-1:] == [eos] and len(with_special) > len(without)
