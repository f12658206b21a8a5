"""The two forms in which a person sees a run's events: plain lines, and a bar at the bottom of a terminal.

Until the first step both say what the start is doing and how many seconds have passed since the view began.
"""

import time
from collections.abc import Mapping
from typing import Any, Protocol, TextIO

from tp2d_train.report.events import PROGRESS, describe, describe_step

PATIENCE_SECONDS = 5.0
NARROW = 110  # columns of a terminal
BESIDES = ("data", "warning")  # said while a phase goes on


class Display(Protocol):
    """Shows events to a person."""

    def show(self, event: Mapping[str, Any]) -> None:
        """Takes the next event."""

    def tick(self) -> None:
        """Called several times a second, whether or not there are events."""

    def close(self) -> None:
        """Shows nothing more."""


def open_display(stream: TextIO, *, progress: str, log_level: str) -> Display:
    """The form that is asked for.

    Args:
        stream: where to show.
        progress: a choice of `TrainConfig.progress`; `auto` is a bar on a terminal where steps are shown at all.
        log_level: the least important level to show.
    """
    if progress == "bar" or (progress == "auto" and stream.isatty() and log_level in ("debug", "info")):
        return Bar(stream, log_level=log_level)
    return Lines(stream, log_level=log_level, quiet=progress == "quiet")


class Lines:
    """Plain lines, for files, pipes and notebooks.

    A phase that lasts is said again after 5 s, then after 10 s, and then every 20 s. Of one that counts
    ("files: 12 of 40") there is a line every 5 s at most, all of them with `debug`.

    Args:
        stream: where to print.
        log_level: the least important level to show.
        quiet: leave out steps and phases.
    """

    def __init__(self, stream: TextIO, *, log_level: str = "info", quiet: bool = False) -> None:
        self._stream = stream
        self._log_level = log_level
        self._quiet = quiet
        self._start = self._said_at = time.monotonic()
        self._patience = PATIENCE_SECONDS
        self._phase: str | None = None  # what the start is doing, as long as it does

    def show(self, event: Mapping[str, Any]) -> None:
        text = describe(event, log_level=self._log_level)
        before = self._phase
        if event["event"] not in BESIDES:
            self._phase = None
        if text is None or (self._quiet and event["event"] in PROGRESS):
            return
        if event["event"] == "phase":
            self._show_phase(text, before, ends="step" in event)
        else:
            self._print(text)

    def tick(self) -> None:
        if self._phase is not None and time.monotonic() - self._said_at >= self._patience:
            self._say(f"still: {self._phase}")
            self._patience = min(2 * self._patience, 4 * PATIENCE_SECONDS)

    def close(self) -> None:
        self._stream.flush()

    def _show_phase(self, text: str, before: str | None, *, ends: bool) -> None:
        self._phase = None if ends else text
        counts = before is not None and ":" in text and before.partition(":")[0] == text.partition(":")[0]
        if counts and self._log_level != "debug" and time.monotonic() - self._said_at < PATIENCE_SECONDS:
            return
        self._say(text)
        self._patience = PATIENCE_SECONDS

    def _say(self, text: str) -> None:
        self._said_at = time.monotonic()
        self._print(f"[{self._said_at - self._start:4.1f} s] {text}")

    def _print(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class Bar:
    """The start's phase, then a progress bar, at the bottom of a terminal; all other events scroll above.

    Args:
        stream: the terminal.
        log_level: the least important level to scroll; the bar itself is there with each.
    """

    def __init__(self, stream: TextIO, *, log_level: str = "info") -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
        from rich.table import Column

        self._log_level = log_level
        self._console = Console(file=stream, force_terminal=True)
        text = TextColumn("{task.description}", markup=False, table_column=Column())
        number = MofNCompleteColumn(table_column=Column(no_wrap=True))
        bar = [] if self._console.width < NARROW else [BarColumn(bar_width=20)]  # the metrics need it
        self._phase = Progress(SpinnerColumn(), TextColumn("[{task.elapsed:.0f} s]", markup=False), text)
        self._steps = Progress(TextColumn("step"), number, *bar, text)
        self._at = {shown: shown.add_task("starting", total=None) for shown in (self._phase, self._steps)}
        self._shown = self._phase
        # One display from first to last, so that what is printed meanwhile is taken by one owner of stdout.
        self._live = Live(console=self._console, refresh_per_second=4, get_renderable=lambda: self._shown)
        self._live.start()

    def show(self, event: Mapping[str, Any]) -> None:
        if "total_steps" in event:
            self._update(self._steps, completed=event["step"], total=event["total_steps"])
        if event["event"] == "step":
            self._switch(self._steps, describe_step(event))
        elif event["event"] == "phase":
            self._switch(self._steps if "total_steps" in event else self._phase, str(event["message"]))
        elif (text := describe(event, log_level=self._log_level)) is not None:
            self._console.print(text, markup=False, highlight=False)

    def tick(self) -> None:
        pass  # it refreshes itself

    def close(self) -> None:
        self._live.stop()

    def _switch(self, shown: Any, description: str) -> None:
        self._update(shown, description=description)
        self._shown = shown

    def _update(self, shown: Any, **values: Any) -> None:
        shown.update(self._at[shown], **values)
