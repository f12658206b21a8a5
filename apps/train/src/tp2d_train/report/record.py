"""What rank 0 writes down of a run: figures and events as they come, and at the end the summary and the picture."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tp2d_train.metrics import append_line, cut_back, read_lines, write_json
from tp2d_train.plot import plot_loss
from tp2d_train.progress import EventLog
from tp2d_train.runs import SUMMARY_FILE

METRICS_FILE = "metrics.jsonl"
PLOT_FILE = "loss.png"


class Record:
    """The files of one run; on other ranks than 0 every call does nothing.

    Args:
        folder: the run's folder; it exists.
        active: whether this is rank 0.
    """

    def __init__(self, folder: Path, *, active: bool) -> None:
        self._folder = folder
        self._active = active
        self._events = EventLog(folder)

    def resume(self, *, step: int) -> None:
        """Drops the figures of steps that will be computed again."""
        if self._active:
            cut_back(self._folder / METRICS_FILE, step=step)

    def figures(self, line: Mapping[str, Any]) -> None:
        """Adds a line to `metrics.jsonl`."""
        if self._active:
            append_line(self._folder / METRICS_FILE, line)

    def event(self, event: str, **figures: Any) -> None:
        """Adds an event for whoever watches."""
        if self._active:
            self._events.write(event, **figures)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Replaces `summary.json`."""
        if self._active:
            write_json(self._folder / SUMMARY_FILE, values)

    def picture(self, *, title: str) -> None:
        """Draws `loss.png` from all of `metrics.jsonl`."""
        if self._active:
            plot_loss(read_lines(self._folder / METRICS_FILE)[0], self._folder / PLOT_FILE, title=title)
