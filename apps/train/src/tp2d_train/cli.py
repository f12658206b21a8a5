"""What every command does alike: its options are made of fields, an error is one line and an exit code.

0: done. 1: a worker failed. 2: the options cannot work. 128 + n: stopped by signal n.
"""

import argparse
import dataclasses
import re
import signal
import sys
from collections.abc import Callable, Sequence
from types import NoneType
from typing import Any, NoReturn, TypeVar

from tp2d_train.fields import allowed_types, choices_of, item_type, parse_value, text_of
from tp2d_train.names import meant
from tp2d_train.outcome import RunFailed, RunStopped

_OPTION = re.compile(r"(--[A-Za-z][\w-]*)(=.*)?", re.DOTALL)
_Kind = TypeVar("_Kind")


def exit_code(command: Callable[[], None]) -> int:
    """Runs a command and returns its exit code. Errors that are no user's mistake and no failed run pass through."""
    try:
        command()
    except ValueError as error:
        return _complain(error, code=2)
    except RunFailed as error:
        return _complain(error, code=1)
    except RunStopped as stop:
        print(stop)
        return 128 + stop.signal
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


class Parser(argparse.ArgumentParser):
    """argparse whose complaint is one `ValueError`, and for which `-` and `_` in the name of an option are one.

    Args:
        command: the name of the command.
        description: what it does, in a line.
        see: the option that lists all options.
    """

    def __init__(self, command: str, description: str, *, see: str = "--help", **settings: Any) -> None:
        super().__init__(prog=f"tp2d {command}", description=description, allow_abbrev=False, **settings)
        self._see = see

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)

    def add_option(
        self, field: dataclasses.Field, *, group: "argparse._ArgumentGroup | None" = None, shown: bool = True
    ) -> None:
        """Adds a field: a positional argument, a switch, or an option with a value.

        Args:
            field: one that `fields.option` declared.
            group: under which heading of the help.
            shown: whether the help shows it.
        """
        target = group or self
        text = f"{field.metadata['help']}{_default_text(field)}".replace("%", "%%") if shown else argparse.SUPPRESS
        flag = f"--{field.name.replace('_', '-')}"
        rules: dict[str, Any] = {"action": _Store, "field": field, "help": text, "default": argparse.SUPPRESS}
        if field.metadata.get("positional"):
            target.add_argument(field.name, metavar=field.name.upper(), **rules)
        elif bool in allowed_types(field):
            target.add_argument(flag, dest=field.name, metavar="true|false", nargs="?", const="true", **rules)
            off: dict[str, Any] = {"action": "store_const", "const": False, "default": argparse.SUPPRESS}
            target.add_argument(flag.replace("--", "--no-", 1), dest=field.name, help=argparse.SUPPRESS, **off)
        else:
            flags = [flag, *(f"--{other.replace('_', '-')}" for other in field.metadata.get("aliases", ()))]
            target.add_argument(*flags, dest=field.name, metavar=_metavar(field), **rules)

    def read(self, argv: Sequence[str]) -> dict[str, Any]:
        """The options that are given, by name.

        Raises:
            ValueError: an unknown option (the closest known one is named), a word too many or too few, a value of the
                wrong kind.
        """
        words = [_with_dashes(word) for word in argv]
        for word in words:
            found = _OPTION.fullmatch(word)
            if found and found[1] not in self._option_string_actions:
                hint = meant(found[1], self._option_string_actions, see=f"{self.prog} {self._see}")
                raise ValueError(f"unknown option {found[1]}; {hint}")
        given, rest = self.parse_known_args(words)
        if rest:
            raise ValueError(f"unexpected argument {rest[0]!r}: options are --name value, see {self.prog} {self._see}")
        return vars(given)


def parse(kind: type[_Kind], argv: Sequence[str], *, command: str, description: str) -> _Kind:
    """The options of a small command, which are the fields of the dataclass `kind`.

    Raises:
        ValueError: as `Parser.read`, and what `kind` itself refuses.
    """
    parser = Parser(command, description)
    for field in dataclasses.fields(kind):  # type: ignore[arg-type]
        parser.add_option(field)
    return kind(**parser.read(argv))


def _with_dashes(word: str) -> str:
    """`--tp_size=2` as `--tp-size=2`; a value stays as it is."""
    found = _OPTION.fullmatch(word)
    return f"{found[1].replace('_', '-')}{found[2] or ''}" if found else word


def _metavar(field: dataclasses.Field) -> str:
    kind = item_type(field) or next(kind for kind in allowed_types(field) if kind is not NoneType)
    return "|".join(choices_of(field)) or kind.__name__.upper()


def _default_text(field: dataclasses.Field) -> str:
    default, builtin = field.metadata["default"], field.metadata.get("builtin")
    if builtin not in (None, default):
        return f" (default: {default}; built-in models: {builtin})"
    return "" if default in (None, "") or default is False else f" (default: {text_of(default)})"


class _Store(argparse.Action):
    """Stores the parsed value; argparse's own `type=` would swallow the message of the error."""

    def __init__(self, *, field: dataclasses.Field, **settings: Any) -> None:
        super().__init__(**settings)
        self.field = field

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        setattr(namespace, self.dest, parse_value(self.field, values))


def _complain(error: Exception, *, code: int) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return code
