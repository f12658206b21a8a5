"""`python -m tp2d_train`: read the options, train, and say in one line what went wrong."""

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from tp2d_train.cli import exit_code
from tp2d_train.config import TrainConfig
from tp2d_train.launch.joined import find_world
from tp2d_train.options import read_options


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns the exit code; see `tp2d_train.cli`."""
    return exit_code(lambda: _train(sys.argv[1:] if argv is None else argv))


def _train(argv: Sequence[str]) -> None:
    settings = read_options(argv)
    config = TrainConfig(**{**_ranks_there_are(settings), **settings})
    from tp2d_train.launch.launch import train  # late: its imports take seconds, a wrong option is answered at once

    train(config)


def _ranks_there_are(settings: Mapping[str, Any]) -> dict[str, int]:
    """`num_workers` as torchrun or Slurm has started them, where the run joins them and says nothing itself."""
    world = find_world(os.environ) if settings.get("launcher") == "local" else None
    given = {"num_workers", "dp_size"} & settings.keys()
    return {} if world is None or given else {"num_workers": int(world["WORLD_SIZE"])}
