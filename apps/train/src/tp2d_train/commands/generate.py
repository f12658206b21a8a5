"""`tp2d generate NAME`: what a run's newest checkpoint writes on from a prompt, by `generate` of transformers.

The checkpoint is exported into a temporary folder first, whatever mesh has saved it, and then runs in one process.
"""

import dataclasses
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tp2d_train.cli import exit_code, parse
from tp2d_train.commands.export import export
from tp2d_train.commands.named import RunOptions, find_folder
from tp2d_train.fields import option
from tp2d_train.runs.stored import read_stored

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateOptions(RunOptions):
    """The options of `tp2d generate`."""

    name: str = option("", "name of a run, or a folder that `tp2d export` wrote", positional=True)
    prompt: str | None = option(None, "text to go on from; default: what comes in on standard input")
    max_new_tokens: int = option(64, "most tokens to write, less where the model has no positions left", least=1)
    temperature: float = option(0.0, "0: the likeliest token each time; above: drawn, flatter the higher", least=0)
    seed: int | None = option(None, "seed of the draws; default: another one each time", least=0)
    chat: bool = option(False, "give the prompt as a user's message, by the chat template")


def main(argv: Sequence[str]) -> int:
    """Runs one command line of `tp2d generate` and returns the exit code; see `tp2d_train.cli`."""
    return exit_code(lambda: _generate(argv))


def generate(options: GenerateOptions, prompt: str) -> str:
    """What the model writes after `prompt`, without the prompt.

    Raises:
        ValueError: no such run, no checkpoint, no chat template, or a prompt as long as the model has positions.
    """
    with _model_folder(options) as (folder, trust_remote_code):
        from tp2d_data import load_tokenizer
        from tp2d_mesh.devices import select_device
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        tokenizer = load_tokenizer(str(folder), trust_remote_code=trust_remote_code)
        ids = _encode(tokenizer, prompt, chat=options.chat)
        model: Any = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trust_remote_code)
        return _write(model.to(select_device("auto")), tokenizer, ids, options)


def read_prompt(given: str | None) -> str:
    """The prompt of the command line, else of standard input.

    Raises:
        ValueError: there is no text in it.
    """
    prompt = given if given is not None or sys.stdin.isatty() else sys.stdin.read()
    if not (prompt or "").strip():
        raise ValueError("the prompt is empty: give --prompt TEXT, or text on standard input")
    return str(prompt)


def _generate(argv: Sequence[str]) -> None:
    options = parse(GenerateOptions, argv, command="generate", description="Let the model of a run write.")
    print(generate(options, read_prompt(options.prompt)))


@contextmanager
def _model_folder(options: GenerateOptions) -> Iterator[tuple[Path, bool]]:
    """A Hugging Face folder of the model, and whether its code is trusted; a run's is there within the block only."""
    folder = Path(options.name).expanduser()
    if (folder / "config.json").is_file():
        yield folder, False
        return
    run = find_folder(options.name, options.storage_path)
    with tempfile.TemporaryDirectory(prefix="tp2d-") as place:
        config = read_stored(run)
        yield export(run, Path(place) / "model"), config is not None and config.trust_remote_code


def _encode(tokenizer: "PreTrainedTokenizerBase", prompt: str, *, chat: bool) -> list[int]:
    """The prompt's tokens as training has them: with those the tokenizer puts before a text, none after it."""
    if chat:
        if tokenizer.chat_template is None:
            raise ValueError("the model's tokenizer has no chat template: leave out --chat")
        messages = [{"role": "user", "content": prompt}]
        prompt = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    ids = tokenizer(prompt, add_special_tokens=not chat)["input_ids"]
    return ids[:-1] if not chat and len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids


def _write(model: Any, tokenizer: "PreTrainedTokenizerBase", ids: list[int], options: GenerateOptions) -> str:
    import torch

    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    room = options.max_new_tokens if positions is None else min(options.max_new_tokens, positions - len(ids))
    if room < 1:
        raise ValueError(f"the prompt has {len(ids)} tokens and the model {positions} positions: give a shorter one")
    settings = _settings(options, new_tokens=room, ends=_ends(model, tokenizer), padding=tokenizer.pad_token_id)
    if options.seed is not None:
        torch.manual_seed(options.seed)
    inputs = torch.tensor([ids], device=model.device)
    written = model.generate(inputs, attention_mask=torch.ones_like(inputs), generation_config=settings)
    return str(tokenizer.decode(written[0, len(ids) :], skip_special_tokens=True))


def _settings(options: GenerateOptions, *, new_tokens: int, ends: list[int], padding: int | None) -> "GenerationConfig":
    """The likeliest token each time, or a draw from all tokens; what the model's folder says of it is left aside."""
    from transformers import GenerationConfig

    drawn: dict[str, Any] = {"do_sample": False}
    if options.temperature:
        drawn = {"do_sample": True, "temperature": options.temperature, "top_k": 0, "top_p": 1.0}
    return GenerationConfig(max_new_tokens=new_tokens, eos_token_id=ends, pad_token_id=padding, use_cache=True, **drawn)


def _ends(model: Any, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The tokens that end a text: those of the model's generation settings, and the tokenizer's."""
    named = model.generation_config.eos_token_id
    ends = {*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id}
    return sorted(ends - {None})
