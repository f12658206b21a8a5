"""The program `tp2d`, which is `python -m tp2d_train` too: a table of commands."""

import pkgutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

from tp2d_train.cli import exit_code
from tp2d_train.names import meant


@dataclass(frozen=True)
class Command:
    """A command.

    Args:
        usage: its name and its arguments, for the help.
        main: `module:function` for `pkgutil.resolve_name`. It takes the words after the command's name and returns the
            exit code. As text, so that a command imports its own module only, and a wrong option is answered at once.
        help: what it does.
    """

    usage: str
    main: str
    help: str


COMMANDS = {
    "train": Command("train", "tp2d_train.commands.train:main", "train a model; without options, a small built-in one"),
    "resume": Command("resume NAME", "tp2d_train.commands.train:resume", "go on with a run, with its own settings"),
    "runs": Command("runs", "tp2d_train.commands.runs:main", "list the runs"),
    "report": Command("report NAME...", "tp2d_train.commands.report:main", "make an HTML page of runs"),
    "compare": Command("compare", "tp2d_train.commands.compare:main", "train on several meshes and engines, in turn"),
    "export": Command("export NAME", "tp2d_train.commands.export:main", "make a Hugging Face folder of a run"),
    "generate": Command("generate NAME", "tp2d_train.commands.generate:main", "let a run's model write"),
    "doctor": Command("doctor", "tp2d_train.commands.doctor:main", "check this machine, and say what to mend"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code; see `tp2d_train.cli`."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0
    if words[0] == "--version":
        print(f"tp2d {version('tp2d-train')}")
        return 0
    if words[0] not in COMMANDS:
        return exit_code(lambda: _refuse(words[0]))
    return pkgutil.resolve_name(COMMANDS[words[0]].main)(words[1:])


def help_text() -> str:
    """What `tp2d` says alone."""
    lines = [f"  {command.usage:<15} {command.help}" for command in COMMANDS.values()]
    return "\n".join(
        [
            "usage: tp2d COMMAND [--OPTION VALUE ...]",
            "",
            "Trains Hugging Face causal language models with tensor x data parallelism on Ray Train.",
            "",
            *lines,
            "",
            "tp2d COMMAND --help shows its options.",
        ]
    )


def _refuse(word: str) -> None:
    if word.startswith("-"):
        raise ValueError(f"{word} stands where the command does: tp2d train {word} ..., see tp2d --help")
    raise ValueError(f"unknown command {word}; {meant(word, COMMANDS, see='tp2d --help')}")


if __name__ == "__main__":
    sys.exit(main())
