"""What happens in a run, as events: workers append them to `.events.jsonl`, the driver's view follows the file.

The file is the only link between the two, so that a view works the same under Ray, on local processes, and for a run
on another machine that shares the folder. `events` says which kinds there are.
"""

import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self, TextIO

from tp2d_train.report.display import open_display
from tp2d_train.report.metrics import append_line, read_lines
from tp2d_train.runs.folder import RunFolder

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


class LiveView:
    """Follows a run's events while its `with` block runs; `outcome` is how the run ended.

    Args:
        folder: the run's folder; neither it nor the file need exist yet.
        stream: where to show; None: standard output.
        progress: the form, a choice of `TrainConfig.progress`; `auto` is a bar on a terminal, else plain lines.
        log_level: the least important level to show. `warning` leaves warnings, failures and the run's end, `error`
            failures alone.

    Only events written after the view was made are shown, so one made before the launch shows this launch alone.
    """

    def __init__(
        self, folder: RunFolder, *, stream: TextIO | None = None, progress: str = "auto", log_level: str = "info"
    ) -> None:
        self._path = folder.events
        _, self._offset = read_lines(self._path)
        self._stream = sys.stdout if stream is None else stream
        self._form = {"progress": progress, "log_level": log_level}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self.outcome: Mapping[str, Any] | None = None

    def __enter__(self) -> Self:
        self._display = open_display(self._stream, **self._form)
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
            if self.outcome is None:  # a run that has ended, or failed, is in no phase
                self._display.tick()

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
