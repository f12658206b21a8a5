"""The events of a trace that `torch.profiler` has written, and which of them was under way at an instant.

Times are the trace's own: microseconds. Steps, the loader and waits are `torch.profiler.record_function` ranges.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tp2d_mesh.profile.spans import Span

STEP = "tp2d step"
"""The name of the range around each step that is to be counted."""

DATA = "tp2d data"
"""The name of the range around the wait for a step's batches; it may stand before the step's own range."""

WAIT = "tp2d wait"
"""On the CPU, the name of the range around a wait for a collective that Python has launched."""

DEVICE_WORK = ("kernel", "gpu_memcpy", "gpu_memset")
"""The categories of what runs on a GPU."""

Event = Mapping[str, Any]


def complete(events: Iterable[Event]) -> list[Event]:
    """The events that have a beginning and a duration."""
    return [event for event in events if event.get("ph") == "X"]


def span_of(event: Event) -> Span:
    """When the event began and ended."""
    start = float(event["ts"])
    return start, start + float(event["dur"])


def thread_of(event: Event) -> tuple[Any, Any]:
    """Which thread it happened on: process and thread."""
    return event.get("pid", 0), event.get("tid", 0)


def ranges(events: Iterable[Event], name: str) -> list[Event]:
    """The ranges of this name as the host saw them, in the order of time."""
    found = (event for event in events if event["name"] == name and event.get("cat") == "user_annotation")
    return sorted(found, key=lambda event: float(event["ts"]))


def of_kind(events: Iterable[Event], *kinds: str, within: Sequence[Span]) -> list[Event]:
    """The events of these categories that began within one of the spans."""
    found = (event for event in events if event.get("cat") in kinds)
    return [e for e in found if any(start <= float(e["ts"]) < stop for start, stop in within)]


def by_start(events: Iterable[Event]) -> list[Event]:
    """In the order of their beginning, a call before the calls inside it."""
    return sorted(events, key=lambda event: (float(event["ts"]), -float(event["dur"])))


def innermost(calls: Iterable[Event]) -> Iterator[tuple[Event, Span]]:
    """Cuts the time of one thread's nested calls into pieces, each with the innermost call that was under way."""
    under_way: list[tuple[Event, float]] = []
    reached = float("-inf")
    for event in by_start(calls):
        start, stop = span_of(event)
        yield from _ended(under_way, reached, until=start)
        reached = start
        under_way.append((event, stop))
    yield from _ended(under_way, reached, until=float("inf"))


def _ended(under_way: list[tuple[Event, float]], reached: float, *, until: float) -> Iterator[tuple[Event, Span]]:
    """The pieces from `reached` to `until`; takes the calls that have ended off the list."""
    while under_way and reached < until:
        event, stop = under_way[-1]
        if reached < min(stop, until):
            yield event, (reached, min(stop, until))
            reached = min(stop, until)
        if stop <= until:
            under_way.pop()
        else:
            return
