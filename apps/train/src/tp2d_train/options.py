"""The command line and the YAML file of a run, both made from the fields of `TrainConfig`.

The YAML file gives defaults, the command line wins. Nothing here imports torch, so that a mistyped option is answered
at once.
"""

import dataclasses
from argparse import SUPPRESS
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import yaml

from tp2d_train.cli import Parser
from tp2d_train.config import TrainConfig, check_names, option_fields

DESCRIPTIONS = {
    "train": "Train a causal language model with tensor x data parallelism under Ray Train.",
    "resume": "Go on with a run at the step it last saved, with its own configuration; an option that is given "
    "overrides it, where a run may change it.",
}
EPILOG = (
    "A switch is --compile, --compile true or --no-compile, and '_' is as good as '-'. --help-all shows all {} options."
)


def build_parser(command: str = "train", *, every: bool = False) -> Parser:
    """One option per field of `TrainConfig`, plus `--config`. Options that are not given are absent from the result.

    Args:
        command: `train`, or `resume`, which takes the run's name as a word and has no `--resume`.
        every: whether the help shows all options, or the common ones.
    """
    usage = f"tp2d {command} {'NAME ' if command == 'resume' else ''}[--config RUN.yaml] [--OPTION VALUE ...]"
    epilog = None if every else EPILOG.format(len(option_fields()))
    parser = Parser(command, DESCRIPTIONS[command], see="--help-all", usage=usage, epilog=epilog)
    parser.add_argument("--help-all", action="help", help="show every option and exit")
    parser.add_argument("--config", metavar="FILE", help="YAML file with defaults for the options", default=SUPPRESS)
    if command == "resume":
        parser.add_argument("name", metavar="NAME", help="name of the run")
    add_options(parser, every=every, without=() if command == "train" else ("name", "resume"))
    return parser


def add_options(parser: Parser, *, every: bool, without: Collection[str] = ()) -> None:
    """Adds the fields of `TrainConfig` under their headings.

    Args:
        parser: of a command.
        every: whether the help shows all of them, or the common ones.
        without: names of fields that the command does not take.
    """
    for title, fields in option_groups().items():
        group = parser.add_argument_group(title)
        for field in fields:
            if field.name not in without:
                parser.add_option(field, group=group, shown=every or "common" in field.metadata)


def option_groups() -> dict[str, list[dataclasses.Field]]:
    """The fields under the headings of the help, in the order of their declaration."""
    groups: dict[str, list[dataclasses.Field]] = {}
    title = ""
    for field in option_fields():
        title = field.metadata.get("starts", title)
        groups.setdefault(title, []).append(field)
    return groups


def read_options(argv: Sequence[str], *, command: str = "train") -> dict[str, Any]:
    """The settings of a command line, over those of its YAML file, by field name.

    Raises:
        ValueError: an unknown option or key (the closest known one is named), a value of the wrong kind, a YAML file
            that cannot be read.
    """
    settings = build_parser(command, every="--help-all" in argv).read(argv)
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
    content = {str(name).replace("-", "_"): value for name, value in content.items()}
    try:
        check_names(content)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if "batch_size" in content:
        content["batch_size_per_gpu"] = content.pop("batch_size")
    return content


def check_needs(config: TrainConfig, *, given: Collection[str]) -> None:
    """Refuses an option that is given and would not be read, such as `messages_field` without `loss_on` assistant.

    Raises:
        ValueError: with the option that is missing.
    """
    for field in option_fields():
        if field.name in given and "needs" in field.metadata:
            name, value = field.metadata["needs"]
            if getattr(config, name) != value:
                raise ValueError(
                    f"{field.name} is read with {name} {value} only, and {name} is {getattr(config, name)}: "
                    f"add --{name.replace('_', '-')} {value}"
                )
