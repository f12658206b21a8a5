"""`tp2d report NAME...`: one HTML page of a run, or of several beside one another. It reads the runs' folders only."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from tp2d_train.cli import Parser, exit_code
from tp2d_train.commands.named import StorageOptions, find_folder
from tp2d_train.commands.runs import describe
from tp2d_train.fields import option
from tp2d_train.runs.folder import replace_file

PAGE = "report.html"


@dataclass(frozen=True, kw_only=True)
class ReportOptions(StorageOptions):
    """The options of `tp2d report`; checks itself."""

    names: tuple[str, ...] = option((), "names of the runs", positional=True)
    output: str | None = option(
        None, f"the page; default: {PAGE} in the run's folder, for several runs in the folder that holds them"
    )


def main(argv: Sequence[str]) -> int:
    """Runs one command line of `tp2d report` and returns the exit code; see `tp2d_train.cli`."""
    return exit_code(lambda: print(report(_read(argv))))


def report(options: ReportOptions) -> Path:
    """Writes the page and returns its path.

    Raises:
        ValueError: there is no such run, or the page cannot be written there.
    """
    folders = [find_folder(name, options.storage_path) for name in dict.fromkeys(options.names)]
    place = folders[0].path if len(folders) == 1 else Path(options.storage_path).expanduser()
    path = place / PAGE if options.output is None else Path(options.output).expanduser()
    if path.is_dir():
        raise ValueError(f"--output {path} is a folder: name a file, such as {path / PAGE}")
    from tp2d_train.page.facts import read_facts  # late: a wrong name is answered at once
    from tp2d_train.page.page import render

    page = render([read_facts(folder, state=describe(folder).state) for folder in folders])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, page.encode())
    except OSError as error:
        raise ValueError(f"the page cannot be written to {path} ({error.strerror}): choose another --output") from None
    return path


def _read(argv: Sequence[str]) -> ReportOptions:
    """`names` takes several words, which no option of another command does."""
    parser = Parser("report", "Make an HTML page of a run, or of several side by side.")
    parser.add_argument("names", metavar="NAME", nargs="+", help="names of the runs")
    for field in fields(ReportOptions):
        if field.name != "names":
            parser.add_option(field)
    return ReportOptions(**parser.read(argv))
