"""`tp2d train` and `tp2d resume NAME`: read the options, train, and say in one line what went wrong."""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from tp2d_train.cli import exit_code
from tp2d_train.commands.named import find_folder
from tp2d_train.config import TrainConfig
from tp2d_train.launch.joined import find_world
from tp2d_train.options import check_needs, read_options
from tp2d_train.runs.run import resumed_settings


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line of `tp2d train` and returns the exit code; see `tp2d_train.cli`."""
    return exit_code(lambda: _train(read_options(sys.argv[1:] if argv is None else argv)))


def resume(argv: Sequence[str]) -> int:
    """Runs one command line of `tp2d resume` and returns the exit code."""
    return exit_code(lambda: _resume(read_options(argv, command="resume")))


def _resume(given: Mapping[str, Any]) -> None:
    find_folder(given["name"], given.get("storage_path", TrainConfig.storage_path))
    _train({**given, "resume": "must"})


def _train(given: Mapping[str, Any]) -> None:
    config = TrainConfig(**resumed_settings({**_ranks_there_are(given), **given}))
    check_needs(config, given=given)
    from tp2d_train.launch.launch import train  # late: its imports take seconds, a wrong option is answered at once

    train(config)


def _ranks_there_are(given: Mapping[str, Any]) -> dict[str, int]:
    """`num_workers` as torchrun or Slurm has started them, where the run joins them and nothing else is given."""
    world = find_world(os.environ)
    if world is None or resumed_settings(given).get("launcher") != "local" or {"num_workers", "dp_size"} & given.keys():
        return {}
    return {"num_workers": int(world["WORLD_SIZE"])}
