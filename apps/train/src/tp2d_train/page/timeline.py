"""The time line of a run: its steps over the time in which it ran, with checkpoints and what went wrong.

The time between the end of a start and the next `started` event is cut out: it may be a second or a month. The list of
events has the clock times.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from tp2d_train.page.facts import Facts
from tp2d_train.page.history import ENDS, Start
from tp2d_train.page.svg import BAD, FONT, GOOD, INK, LINE, MUTED, inline_svg, new_figure, run_colour

WIDE, NARROW = (860.0, 230.0), (300.0, 230.0)  # points; the page shows the one that fits
UNITS = ((3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))
MOST_LABELS = 6
TROUBLE = ("warning", "skipped", "spike", "failed")


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """The pictures of one run's time line, which show the same.

    Args:
        wide: for a screen.
        narrow: for a phone.
    """

    wide: Markup
    narrow: Markup


def draw_timeline(run: Facts, *, number: int) -> Timeline | None:
    """The time line of a run; None where no start got as far as training.

    Args:
        run: the run.
        number: its place on the page, from 0, for its colour.
    """
    if not run.starts:
        return None
    wide, narrow = (_draw(run, size, number=number, form=form) for form, size in (("wide", WIDE), ("narrow", NARROW)))
    return Timeline(wide=wide, narrow=narrow)


def _draw(run: Facts, size: tuple[float, float], *, number: int, form: str) -> Markup:
    offsets = _offsets(run.starts)
    seconds, unit = _unit(offsets[-1])
    figure, axes = new_figure(width=size[0], height=size[1])
    for start, offset in zip(run.starts, offsets, strict=False):
        _draw_start(axes, start, offset=offset, seconds=seconds, number=number)
        if offset:
            axes.axvline(offset / seconds, color=MUTED, linewidth=0.9, linestyle=(0, (3, 3)))
    _label_restarts(axes, run.starts, offsets, seconds=seconds)
    _dress(axes, unit, total=offsets[-1] / seconds)
    title = f"{run.name}: steps over the time in which it ran"
    return inline_svg(figure, name=f"time-{number}-{form}", title=title, description=_in_words(run.starts))


def _offsets(starts: Sequence[Start]) -> list[float]:
    """The seconds that the run had been running at the beginning of each start, and after the last one."""
    offsets = [0.0]
    for start in starts:
        offsets.append(offsets[-1] + start.ended - start.began)
    return offsets


def _unit(total: float) -> tuple[float, str]:
    return next((unit for unit in UNITS if total >= 2 * unit[0]), UNITS[-1])


def _draw_start(axes: Any, start: Start, *, offset: float, seconds: float, number: int) -> None:
    """The line of a start; the part that was computed again later is pale."""

    def at(event: Mapping[str, Any]) -> tuple[float, int]:
        return (offset + event["time"] - start.began) / seconds, event["step"]

    stepped = [event for event in start.events if "step" in event and event["event"] in ("step", "saved", "evaluated")]
    kept = [event for event in stepped if start.has_kept(event)]
    line: dict[str, Any] = {"color": run_colour(number), "linewidth": 1.8}
    first = (offset / seconds, start.step)
    axes.plot(*zip(first, *map(at, stepped), strict=True), **line, alpha=0.35, linestyle=(0, (2, 1)))
    axes.plot(*zip(first, *map(at, kept), strict=True), **line)
    for kinds, marker, colour in ((("saved",), "o", INK), (TROUBLE, "^", BAD), (("finished",), "s", GOOD)):
        points = [at(event) for event in start.events if event["event"] in kinds and "step" in event]
        if points:
            axes.plot(*zip(*points, strict=True), marker, color=colour, markersize=5, clip_on=False, zorder=3)
    if start.end == ENDS["failed"]:
        place = (offset + start.ended - start.began) / seconds
        axes.plot([place], [start.last_step], "X", color=BAD, markersize=8, clip_on=False, zorder=3)


def _label_restarts(axes: Any, starts: Sequence[Start], offsets: Sequence[float], *, seconds: float) -> None:
    """The numbers of the starts at the top, where there is room for them."""
    if not 1 < len(starts) <= MOST_LABELS:
        return
    for start, offset, end in zip(starts, offsets, offsets[1:], strict=False):
        if end - offset >= 0.15 * offsets[-1]:
            where = ((offset + end) / 2 / seconds, 1.0)
            settings = {"ha": "center", "va": "bottom", "color": MUTED, "fontsize": FONT}
            axes.text(*where, f"start {start.number}", transform=axes.get_xaxis_transform(), **settings)


def _dress(axes: Any, unit: str, *, total: float) -> None:
    axes.set_xlabel(f"{unit} in which it ran", color=MUTED, fontsize=FONT)
    axes.set_ylabel("optimizer step", color=MUTED, fontsize=FONT)
    axes.set_xlim(-0.01 * total, 1.02 * total or 1)
    axes.margins(y=0.1)
    axes.spines["bottom"].set_color(LINE)
    axes.yaxis.get_major_locator().set_params(integer=True, nbins=6)


def _in_words(starts: Sequence[Start]) -> str:
    return "; ".join(f"start {one.number}: step {one.step} to {one.last_step}, {one.end}" for one in starts)
