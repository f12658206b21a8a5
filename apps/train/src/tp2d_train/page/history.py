"""The starts of a run, read from its events: from where to where each went, and how it ended.

A killed process leaves no event. That a start was cut off is known from the next one, or from nobody running it now.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

ENDS = {"finished": "finished", "stopped": "stopped as asked", "failed": "failed"}
CUT_OFF = "ended without a word, as after a kill"
RUNNING = "is running"


@dataclass(kw_only=True)
class Start:
    """One start of a run, from its `started` event on; the set-up before is not counted.

    Args:
        number: from 1.
        values: of its `started` event.
        began: when, in seconds since 1970.
        ended: when its last event was.
        end: how it ended, in words.
        resumed: the name of the checkpoint it went on from; None: it began anew.
        events: those that happened in it, but `phase`.
        kept_until: the last of its steps that the run still has; None: all. A start that was cut off had computed more,
            and the next one went back to a checkpoint.
    """

    number: int
    values: Mapping[str, Any]
    began: float
    ended: float
    end: str = CUT_OFF
    resumed: str | None = None
    events: list[Mapping[str, Any]] = field(default_factory=list)
    kept_until: int | None = None

    @property
    def step(self) -> int:
        """The completed steps at its beginning."""
        return int(self.values.get("step", 0))

    @property
    def last_step(self) -> int:
        """The last step that its events tell of."""
        return max((int(event["step"]) for event in self.events if "step" in event), default=self.step)

    @property
    def lost(self) -> int:
        """How many of the steps that its events tell of were computed again later."""
        return 0 if self.kept_until is None else max(0, self.last_step - self.kept_until)

    def has_kept(self, event: Mapping[str, Any]) -> bool:
        """Whether the step of one of its events is still part of the run."""
        return self.kept_until is None or int(event.get("step", 0)) <= self.kept_until


def starts_of(events: Iterable[Mapping[str, Any]], *, is_running: bool) -> list[Start]:
    """The starts that a run's events tell of, in their order.

    Args:
        events: all of them, each with `event` and `time`.
        is_running: whether a process trains the run now.
    """
    starts: list[Start] = []
    for event in events:
        if event["event"] == "started":
            starts.append(Start(number=len(starts) + 1, values=event, began=event["time"], ended=event["time"]))
        elif starts and event["event"] != "phase":
            _add(starts[-1], event)
    if starts and is_running and starts[-1].end == CUT_OFF:
        starts[-1].end = RUNNING
    _mark_lost(starts)
    return starts


def _add(start: Start, event: Mapping[str, Any]) -> None:
    """Adds an event, where the start has not ended. What other ranks say after the first failure follows from it."""
    if start.end != CUT_OFF:
        return
    start.events.append(event)
    start.ended = max(start.ended, event["time"])
    start.end = ENDS.get(event["event"], start.end)
    if event["event"] == "resumed":
        start.resumed = str(event.get("checkpoint", ""))


def _mark_lost(starts: Sequence[Start]) -> None:
    lowest: int | None = None
    for start in reversed(starts):
        start.kept_until = lowest
        lowest = start.step if lowest is None else min(lowest, start.step)
