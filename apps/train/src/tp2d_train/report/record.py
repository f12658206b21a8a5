"""What rank 0 writes down of a run: metrics and events as they come, and at the end the summary and the plot."""

import time
from collections.abc import Mapping
from typing import Any

from tp2d_train.report.metrics import append_line, cut_back, read_lines, write_json
from tp2d_train.report.plot import plot_loss
from tp2d_train.report.progress import EventLog
from tp2d_train.runs.folder import RunFolder


class Record:
    """The files of one run; on other ranks than 0 every call does nothing.

    Args:
        folder: the run's folder; it exists.
        active: whether this is rank 0.
    """

    def __init__(self, folder: RunFolder, *, active: bool) -> None:
        self._folder = folder
        self._active = active
        self._events = EventLog(folder)

    def resume(self, *, step: int) -> None:
        """Drops the metrics of steps that will be computed again."""
        if self._active:
            cut_back(self._folder.metrics, step=step)

    def metrics(self, line: Mapping[str, Any]) -> None:
        """Adds a line to `metrics.jsonl`, with the time to the millisecond."""
        if self._active:
            append_line(self._folder.metrics, {**line, "time": round(time.time(), 3)})

    def event(self, event: str, **values: Any) -> None:
        """Adds an event for the driver's view."""
        if self._active:
            self._events.write(event, **values)

    def phase(self, message: str) -> None:
        """Says what the start is doing from now on."""
        self.event("phase", message=message)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Replaces `summary.json`."""
        if self._active:
            write_json(self._folder.summary, values)

    def plot(self, *, title: str) -> None:
        """Draws `loss.png` from all of `metrics.jsonl`."""
        if self._active:
            plot_loss(read_lines(self._folder.metrics)[0], self._folder.plot, title=title)
