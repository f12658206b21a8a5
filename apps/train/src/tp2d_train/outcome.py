"""How a run can end, as values and exceptions that the launchers raise and the command line turns into exit codes."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Result:
    """A finished run.

    Args:
        path: its folder.
        summary: what its `summary.json` holds; empty on ranks other than 0 that joined a run.
    """

    path: Path
    summary: Mapping[str, Any]


class RunFailed(RuntimeError):
    """A worker failed; the message names the first rank that did, the cause, and the file that has the traceback."""


class WorkerDied(RuntimeError):
    """A worker's process ended without raising: killed, out of memory, or crashed in native code."""


class Diverged(RuntimeError):
    """Training failed although every part works: gradients that are not finite, or a spike of the loss.

    The message names the first step and the checkpoint to go back to.
    """


class RunStopped(Exception):
    """The run saved and left because a signal asked it to; the message has the command that resumes it.

    Args:
        signal: the signal's number.
    """

    def __init__(self, message: str, *, signal: int) -> None:
        super().__init__(message)
        self.signal = signal
