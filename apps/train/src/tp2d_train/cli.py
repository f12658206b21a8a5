"""`python -m tp2d_train`: read the options, train, and say in one line what went wrong.

Exit codes: 0 the run is complete, 1 a worker failed, 2 the options cannot work, 128 + n stopped by signal n.
"""

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from tp2d_train.config import TrainConfig
from tp2d_train.launch_joined import find_world
from tp2d_train.options import read_options
from tp2d_train.outcome import RunFailed, RunStopped


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command line and returns the exit code; a user's mistake is one line on stderr, without a traceback."""
    try:
        settings = read_options(sys.argv[1:] if argv is None else argv)
        config = TrainConfig(**{**_ranks_there_are(settings), **settings})
        from tp2d_train.launch import train  # late: what it imports takes seconds, a wrong option is answered at once

        train(config)
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


def _ranks_there_are(settings: Mapping[str, Any]) -> dict[str, int]:
    """`num_workers` as torchrun or Slurm has started them, where the run joins them and says nothing itself."""
    world = find_world(os.environ) if settings.get("launcher") == "local" else None
    given = {"num_workers", "dp_size"} & settings.keys()
    return {} if world is None or given else {"num_workers": int(world["WORLD_SIZE"])}


def _complain(error: Exception, *, code: int) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return code
