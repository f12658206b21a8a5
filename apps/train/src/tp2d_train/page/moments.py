"""What happened in a run, as lines of a list."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tp2d_train.page.facts import Facts
from tp2d_train.page.figures import clock_time
from tp2d_train.page.history import CUT_OFF
from tp2d_train.report.events import LEVELS, describe

LEFT_OUT = ("step", "phase")  # the curves show the steps
USUAL = ("saved", "evaluated", "epoch", "data")
MOST = 300  # of each list


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A line of the list.

    Args:
        time: when, in this machine's time.
        kind: of the event, or `cut off`.
        level: `info`, `warning` or `error`.
        text: what happened.
        details: a traceback; empty: there is none.
        is_lost: whether its step was computed again later.
    """

    time: str
    kind: str
    level: str
    text: str
    details: str = ""
    is_lost: bool = False


@dataclass(frozen=True, kw_only=True)
class Moments:
    """What happened, in two lists.

    Args:
        important: starts, ends, and what went wrong.
        usual: checkpoints, evaluations, epochs, and what was said of the data.
        left_out: how many earlier lines both lists leave out, as there are very many.
    """

    important: Sequence[Moment]
    usual: Sequence[Moment]
    left_out: int


def moments_of(run: Facts) -> Moments:
    """The events of a run, and the ends of starts that left no event."""
    every = sorted([*_told(run), *_cut_off(run)], key=lambda item: item[0])
    important = [moment for _, moment in every if moment.kind not in USUAL]
    usual = [moment for _, moment in every if moment.kind in USUAL]
    left_out = max(0, len(important) - MOST) + max(0, len(usual) - MOST)
    return Moments(important=important[-MOST:], usual=usual[-MOST:], left_out=left_out)


def _told(run: Facts) -> Iterable[tuple[float, Moment]]:
    lost = {id(event) for start in run.starts for event in start.events if not start.has_kept(event)}
    number = 0
    for event in run.events:
        if event["event"] in LEFT_OUT:
            continue
        number += event["event"] == "started"
        yield event["time"], _moment(event, number=number, is_lost=id(event) in lost)


def _moment(event: Mapping[str, Any], *, number: int, is_lost: bool) -> Moment:
    return Moment(
        time=clock_time(event["time"]),
        kind=event["event"],
        level=LEVELS.get(event["event"], "info"),
        text=_text(event, number=number),
        details=str(event.get("traceback", "")),
        is_lost=is_lost,
    )


def _text(event: Mapping[str, Any], *, number: int) -> str:
    try:
        if event["event"] == "started":
            what = f"{event['engine']} on {event['mesh']}, {event['device']}, {event['precision']}"
            return f"start {number} at step {event['step']}/{event['total_steps']}: {what}"
        return describe(event) or "an event that this version does not know"
    except (KeyError, TypeError, ValueError):
        return "an event whose values this version does not read"


def _cut_off(run: Facts) -> Iterable[tuple[float, Moment]]:
    for start in run.starts:
        if start.end == CUT_OFF:
            lost = f"; at least {start.lost} of its steps were computed again" if start.lost else ""
            text = f"start {start.number} {CUT_OFF}, after step {start.last_step}{lost}"
            moment = Moment(time=clock_time(start.ended), kind="cut off", level="error", text=text)
            yield start.ended, moment
