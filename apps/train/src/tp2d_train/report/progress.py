"""What happens in a run, as events: workers append them to `.events.jsonl`, the driver's view follows the file.

The file is the only link between the two, so that a view works the same under Ray, on local processes, and for a run
on another machine that shares the folder. An event is a flat record: its kind under `event`, the time, and values.
"""

import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

from tp2d_train.folder import RunFolder
from tp2d_train.report.metrics import append_line, read_lines

POLL_SECONDS = 0.2


class EventLog:
    """Appends events to a run's folder: rank 0's progress, and any rank's failure."""

    def __init__(self, folder: RunFolder) -> None:
        self._path = folder.events

    def write(self, event: str, **values: Any) -> None:
        """Adds one event with its values, which are JSON."""
        append_line(self._path, {"event": event, "time": time.time(), **values})

    def write_failure(self, error: BaseException, *, rank: int) -> None:
        """Adds the `failed` event of `rank`: the cause in one line, and the traceback."""
        message = " ".join(str(error).split()) or "no message"
        details = "".join(traceback.format_exception(error))
        cause = {"error": type(error).__name__, "message": message, "traceback": details}
        self.write("failed", rank=rank, host=socket.gethostname(), **cause)


class Display(Protocol):
    """Shows events to a person."""

    def show(self, event: Mapping[str, Any]) -> None: ...
    def close(self) -> None: ...


class Lines:
    """Plain lines, for files, pipes and notebooks."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def show(self, event: Mapping[str, Any]) -> None:
        line = describe(event)
        if line is not None:
            print(line, file=self._stream, flush=True)

    def close(self) -> None:
        self._stream.flush()


class Bar:
    """A progress bar at the bottom of a terminal; everything but a step's metrics scrolls above it."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[metrics]}"))
        self._progress = Progress(*columns, console=Console(file=stream), refresh_per_second=4)
        self._task = self._progress.add_task("train", total=None, metrics="starting")
        self._progress.start()

    def show(self, event: Mapping[str, Any]) -> None:
        metrics: dict[str, Any] = {"metrics": _metrics(event)} if event["event"] == "step" else {}
        if "total_steps" in event:
            self._progress.update(self._task, completed=event["step"], total=event["total_steps"], **metrics)
        line = describe(event)
        if line is not None and not metrics:
            self._progress.console.print(line, markup=False, highlight=False)

    def close(self) -> None:
        self._progress.stop()


class LiveView:
    """Follows a run's events while its `with` block runs; `outcome` is how the run ended.

    Args:
        folder: the run's folder; neither it nor the file need exist yet.
        stream: where to show: a bar on a terminal, else plain lines; None: standard output.

    Only events written after the view was made are shown, so one made before the launch shows this launch alone.
    """

    def __init__(self, folder: RunFolder, *, stream: TextIO | None = None) -> None:
        self._path = folder.events
        _, self._offset = read_lines(self._path)
        self._stream = sys.stdout if stream is None else stream
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self.outcome: Mapping[str, Any] | None = None

    def __enter__(self) -> Self:
        self._display: Display = Bar(self._stream) if self._stream.isatty() else Lines(self._stream)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join()
        self._poll()
        self._display.close()

    def _follow(self) -> None:
        while not self._end.wait(POLL_SECONDS):
            self._poll()

    def _poll(self) -> None:
        events, self._offset = read_lines(self._path, start=self._offset)
        for event in events:
            self._take(event)

    def _take(self, event: Mapping[str, Any]) -> None:
        """Shows an event. A failure is kept in `outcome` for the launcher, and shown if the run starts again.

        Of several ranks' failures only the first counts: the others fail because that one did.
        """
        before = self.outcome
        if event["event"] == "failed":
            self.outcome = before if before is not None and before["event"] == "failed" else event
            return
        if event["event"] == "started":
            self.outcome = None
            if before is not None:
                self._display.show(before)
        if event["event"] in ("stopped", "finished"):
            self.outcome = event
        self._display.show(event)


def describe(event: Mapping[str, Any]) -> str | None:
    """An event as one line for people, or None for a kind that has none."""
    at = f"step {event['step']}/{event['total_steps']}  " if "total_steps" in event else ""
    match event["event"]:
        case "started":
            return (
                f"{event['places']}\n{event['engine']} on {event['mesh']}, {event['device']}, {event['precision']}: "
                f"{event['parameters']:,} parameters, {event['total_steps'] - event['step']:,} steps to go"
            )
        case "data":
            return str(event["message"])
        case "step":
            return at + _metrics(event)
        case "evaluated":
            return f"{at}eval loss {_number(event['eval_loss'])} over {event['eval_tokens']:,} tokens"
        case "saved":
            return f"{at}saved {event['checkpoint']} in {event['seconds']:.1f} s"
        case "epoch":
            return f"{at}epoch {event['epoch'] + 1}/{event['num_epochs']} ended, mean loss {_number(event['loss'])}"
        case "resumed":
            return f"{at}resumed from {event['checkpoint']}"
        case "prolonged":
            return f"{at}the schedule now ends at step {event['total_steps']}, it ended at {event['before']}"
        case "warning":
            return f"{at}warning: {event['message']}"
        case "stopped":
            return f"{at}stopped as asked; the next start with this name resumes here"
        case "finished":
            return f"{at}finished in {_clock(event['seconds'])}, {event['tokens']:,} tokens"
        case "failed":
            return f"rank {event['rank']} on {event['host']} failed: {event['error']}: {event['message']}"
    return None


def _metrics(event: Mapping[str, Any]) -> str:
    parts = [f"loss {_number(event['loss'])}", f"grad {_number(event['grad_norm'], 3)}", f"lr {event['lr']:.1e}"]
    if "tokens_per_second" in event:
        parts.append(f"{event['tokens_per_second']:,.0f} tok/s")
    return "  ".join([*parts, f"ETA {_clock(event['eta_seconds'])}"])


def _number(value: float | None, digits: int = 4) -> str:
    return "not finite" if value is None else f"{value:#.{digits}g}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
