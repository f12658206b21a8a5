"""The command line and the YAML file of a run, both made from the fields of `TrainConfig`.

The YAML file gives defaults, the command line wins. Nothing here imports torch, so that a mistyped option is answered
at once.
"""

import argparse
import dataclasses
import shlex
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any, NoReturn

import yaml

from tp2d_train.config import check_names, option_fields
from tp2d_train.fields import allowed_types, choices_of, item_type, parse_value, text_of

USAGE = "python -m tp2d_train [--config RUN.yaml] [--OPTION VALUE ...]"


class Parser(argparse.ArgumentParser):
    """argparse whose complaint is one `ValueError` instead of a page of usage and an exit."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def build_parser() -> Parser:
    """One option per field of `TrainConfig`, plus `--config`. Options that are not given are absent from the result."""
    parser = Parser(
        prog="tp2d_train",
        usage=USAGE,
        description="Train a causal language model with tensor x data parallelism under Ray Train.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with defaults for the options below")
    for field in option_fields():
        _add_option(parser, field)
    return parser


def read_options(argv: Sequence[str]) -> dict[str, Any]:
    """The settings of a command line, over those of its YAML file, by field name.

    Raises:
        ValueError: an unknown option or key (the closest known one is named), a value of the wrong kind, a YAML file
            that cannot be read.
    """
    given, rest = build_parser().parse_known_args(argv)
    if rest:
        name = rest[0].split("=")[0]
        if not name.startswith("--"):
            raise ValueError(f"unexpected argument {name!r}: options are --name value, see --help")
        check_names([name.removeprefix("--").replace("-", "_")])
        raise ValueError(f"option {name} is not written as it should be; see --help")
    settings = vars(given)
    path = settings.pop("config", None)
    return {**(read_yaml(path) if path else {}), **settings}


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The settings of a YAML file by field name. What YAML takes for text (`1e-5`) is read by `TrainConfig`."""
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"--config {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"--config {path} is not YAML: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"--config {path} must hold lines like 'tp_size: 2', not {type(content).__name__}")
    try:
        check_names(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if "batch_size" in content:
        content["batch_size_per_gpu"] = content.pop("batch_size")
    return content


def command_line(settings: dict[str, Any]) -> str:
    """The options that give these settings, e.g. `--tp-size 2 --no-compile`, quoted for a shell."""
    switches = {field.name: allowed_types(field) == (bool,) for field in option_fields()}
    words = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool) and switches[name]:
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words.append(f"--{flag} {shlex.quote(text_of(value))}")
    return " ".join(words)


def _add_option(parser: Parser, field: dataclasses.Field) -> None:
    flags = [f"--{field.name.replace('_', '-')}"]
    text = f"{field.metadata['help']}{_default_text(field)}".replace("%", "%%")
    if allowed_types(field) == (bool,):
        parser.add_argument(*flags, dest=field.name, action=argparse.BooleanOptionalAction, help=text)
        return
    if field.name == "batch_size_per_gpu":
        flags.append("--batch-size")
    kind = item_type(field) or next(kind for kind in allowed_types(field) if kind is not NoneType)
    metavar = "|".join(choices_of(field)) or kind.__name__.upper()
    parser.add_argument(*flags, dest=field.name, metavar=metavar, action=_Store, field=field, help=text)


def _default_text(field: dataclasses.Field) -> str:
    default, builtin = field.metadata["default"], field.metadata.get("builtin")
    if builtin not in (None, default):
        return f" (default: {default}; built-in models: {builtin})"
    return "" if default is None or default is False else f" (default: {text_of(default)})"


class _Store(argparse.Action):
    """Stores the parsed value; argparse's own `type=` would swallow the message of the error."""

    def __init__(self, *, field: dataclasses.Field, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.field = field

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        setattr(namespace, self.dest, parse_value(self.field, values))
