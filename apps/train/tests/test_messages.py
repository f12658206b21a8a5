"""No message names an option that the command line does not have."""

import ast
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import tp2d_data
import tp2d_train
from tp2d_train.commands.export import ExportOptions
from tp2d_train.commands.generate import GenerateOptions
from tp2d_train.config import option_fields

OWN = {field.name for kind in (ExportOptions, GenerateOptions) for field in dataclasses.fields(kind)}
OPTIONS = {field.name for field in option_fields()} | OWN | {"batch_size", "config", "help", "help_all"}
# Names in messages that are no options: of files, of a model's configuration, of functions, of variables.
OTHERS = {
    *("tokenizer_config", "chat_template", "add_generation_prompt", "eos_token", "pad_token", "vocab_size"),
    *("attention_mask", "position_ids", "ignore_index", "cross_entropy", "best_fit"),
    *("save_pretrained", "train_func", "shm_size", "memory_viz"),
}
ADVICE = re.compile(r"\b(?:set|raise|lower|give|choose|leave out|or) (--)?([a-z]+(?:[_-][a-z]+)*)\b")
ARGUMENTS = {"holdout", "part", "corpora", "sharding", "tokenizer"}
"""Words that are arguments of tp2d-data and no options, so nobody can be told to set them."""


def sentences(package: Path) -> Iterator[tuple[Path, str]]:
    """The texts in the code of a package that have several words, without docstrings."""
    for file in sorted(package.rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
        docstrings = {ast.get_docstring(node, clean=False) for node in ast.walk(tree) if isinstance(node, documented)}
        texts = (
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        )
        yield from ((file, text) for text in texts if " " in text.strip() and text not in docstrings)


@pytest.mark.parametrize("package", [tp2d_data, tp2d_train])
def test_messages_name_options_that_there_are(package: object) -> None:
    wrong = []
    for file, text in sentences(Path(str(package.__file__)).parent):
        names = set(re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", text)) | set(re.findall(r"--([a-z]+(?:-[a-z]+)*)", text))
        stray = {name for name in names if name.removeprefix("no-").replace("-", "_") not in OPTIONS | OTHERS}
        stray |= {name for _, name in ADVICE.findall(text) if name in ARGUMENTS}
        if stray:
            wrong.append(f"{file.name}: {', '.join(sorted(stray))} in {text!r}")
    assert not wrong, "\n".join(wrong)
