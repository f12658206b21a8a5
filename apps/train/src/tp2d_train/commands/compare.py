"""`tp2d compare`: train the same model on the same data over several meshes and engines, and say what came of it."""

import dataclasses
import os
from argparse import SUPPRESS
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tp2d_train.cli import Parser, exit_code
from tp2d_train.comparison.settings import MAX_STEPS
from tp2d_train.config import RECOMPUTATION, TrainConfig
from tp2d_train.engines import ENGINES
from tp2d_train.fields import option
from tp2d_train.launch.joined import find_world
from tp2d_train.options import add_options, check_needs, read_yaml
from tp2d_train.outcome import RunFailed

if TYPE_CHECKING:
    from tp2d_train.comparison.compare import Comparison

DESCRIPTION = (
    "Train the same model on the same data over several meshes and engines, one run after another, at the same global "
    "batch. The other options are those of tp2d train; a run that is there is not repeated."
)
USAGE = "tp2d compare [--config RUN.yaml] [--OPTION VALUE ...]"
INSTEAD = {
    "engine": "--engines",
    "tp_size": "--meshes",
    "dp_size": "--meshes",
    "gradient_accumulation_steps": "--global-batch-size, from which it follows on every mesh",
    "resume": "--name: a comparison that is there goes on",
    "log_interval": "nothing: every step of its runs is logged",
}
"""Options of a run that a comparison chooses for it, and what to give in their place."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """The options of `tp2d compare` besides those of a run. They only declare; `comparison.Settings` checks them."""

    meshes: tuple[str, ...] | None = option(
        None, "dp x tp, such as 1x1,2x1,1x2, of any number of ranks; none: all of num_workers ranks"
    )
    engines: tuple[str, ...] = option(tuple(ENGINES), f"of {', '.join(ENGINES)}")
    activation_checkpointing: tuple[str, ...] = option(
        (TrainConfig.activation_checkpointing,), f"what backward computes again, several of {', '.join(RECOMPUTATION)}"
    )
    max_steps: int | None = option(MAX_STEPS, "end every run after this many optimizer steps", least=1)


def main(argv: Sequence[str]) -> int:
    """Runs one command line of `tp2d compare` and returns the exit code; see `tp2d_train.cli`."""
    return exit_code(lambda: _compare(read_options(argv)))


def read_options(argv: Sequence[str]) -> dict[str, Any]:
    """The settings of a command line, over those of its YAML file, which is one of `tp2d train`.

    Of the file's run, the mesh says how many ranks there are and, with the rows of a micro-batch and the accumulation,
    how large the global batch is; its engine and its way to resume are not read.

    Raises:
        ValueError: as `tp2d_train.options.read_options`, or an option that a comparison varies or chooses.
    """
    for word in argv:
        name = word.removeprefix("--").partition("=")[0].replace("-", "_")
        if word.startswith("--") and name in INSTEAD:
            raise ValueError(f"{name} is not an option of a comparison: give {INSTEAD[name]}")
    settings = _parser(every="--help-all" in argv).read(argv)
    path = settings.pop("config", None)
    file = read_yaml(path) if path else {}
    if "activation_checkpointing" in file:
        file["activation_checkpointing"] = (str(file["activation_checkpointing"]),)
    return {**file, **settings}


def _parser(*, every: bool) -> Parser:
    parser = Parser("compare", DESCRIPTION, see="--help-all", usage=USAGE)
    parser.add_argument("--help-all", action="help", help="show every option and exit")
    parser.add_argument("--config", metavar="FILE", help="YAML file of a run, as tp2d train takes it", default=SUPPRESS)
    own = dataclasses.fields(CompareOptions)
    group = parser.add_argument_group("What is compared")
    for field in own:
        parser.add_option(field, group=group)
    add_options(parser, every=every, without={*INSTEAD, *(field.name for field in own)})
    return parser


def _compare(given: Mapping[str, Any]) -> None:
    from tp2d_train.comparison.folder import ComparisonFolder, find_settings

    folder = ComparisonFolder.at(given.get("storage_path") or TrainConfig.storage_path, given.get("name"))
    settings = find_settings(folder, given)
    check_needs(settings.base(), given=settings.run)
    if settings.base().launcher == "local" and find_world(os.environ) is not None:
        raise ValueError("tp2d compare starts the ranks of its runs itself: call it once, without torchrun or srun")
    from tp2d_train.comparison.compare import Comparison, failed  # late: a wrong option is answered without torch

    comparison = Comparison(folder=folder, settings=settings, say=lambda text: print(text, flush=True))
    rows = comparison.run()
    _show(comparison)
    if names := failed(rows):
        raise RunFailed(f"{len(names)} of {len(rows)} runs failed ({', '.join(names)}); again with: {folder.command()}")


def _show(comparison: "Comparison") -> None:
    """Prints the table, and writes it and the picture."""
    from tp2d_train.comparison.picture import draw
    from tp2d_train.comparison.table import markdown, notes_of, show

    rows, curves, folder = comparison.rows(), comparison.curves(), comparison.folder
    environment = comparison.environment()
    notes = notes_of(rows, curves, environment=environment)
    print()
    show(rows, notes)
    folder.table.write_text(markdown(rows, notes), encoding="utf-8")
    files = [folder.table, folder.json]
    if curves:
        base = comparison.settings.base()
        title = f"{base.model_name}, {base.global_batch_size} rows of {base.seq_length} tokens a step"
        finished = [row for row in rows if row.state == "finished"]
        draw(finished, curves, folder.picture, title=title, device=environment["device"])
        files.append(folder.picture)
    print("\n".join(["", *map(str, files)]))
