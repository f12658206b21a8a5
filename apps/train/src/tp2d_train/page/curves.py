"""The curves of a page: one picture for each metric, with all runs in it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from tp2d_train.page.facts import Facts
from tp2d_train.page.svg import BAD, FONT, MUTED, inline_svg, new_figure, run_colour
from tp2d_train.report.metrics import column
from tp2d_train.report.plot import smooth

WIDTH, HEIGHT = 300.0, 185.0  # points: on a phone of 400 pixels text keeps its size
MOST_POINTS = 400  # of a line; the picture has fewer pixels
SMOOTHED_FROM = 40
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)))  # for more runs than there are colours


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A metric and how it is drawn.

    Args:
        metric: its name in `metrics.jsonl`.
        title: what the page calls it.
        unit: of its axis.
        scale: what a value is multiplied by.
        from_zero: whether the axis begins at 0.
        is_evaluation: whether the lines of evaluations have it.
        shows_trouble: whether skipped steps and spikes are marked.
    """

    metric: str
    title: str
    unit: str
    scale: float = 1.0
    from_zero: bool = False
    is_evaluation: bool = False
    shows_trouble: bool = False


PANELS = (
    Panel(metric="loss", title="Training loss", unit="nats per token", shows_trouble=True),
    Panel(metric="eval_loss", title="Evaluation loss", unit="nats per token", is_evaluation=True),
    Panel(metric="grad_norm", title="Gradient norm, before clipping", unit="norm", shows_trouble=True),
    Panel(metric="lr", title="Learning rate", unit="rate"),
    Panel(metric="tokens_per_second", title="Throughput", unit="tokens per second", from_zero=True),
    Panel(metric="memory_bytes", title="Peak memory of rank 0", unit="GiB", scale=2**-30, from_zero=True),
)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A drawn panel.

    Args:
        title: of the panel.
        picture: the drawing.
        notes: what the picture cannot show, such as values that are not finite.
    """

    title: str
    picture: Markup
    notes: Sequence[str]


def draw_curves(runs: Sequence[Facts]) -> list[Curve]:
    """A picture for every metric that a run has; the others are left out."""
    return [curve for panel in PANELS if (curve := _draw(panel, runs)) is not None]


def thinned(points: Sequence[tuple[int, float]], *, most: int = MOST_POINTS) -> list[tuple[int, float]]:
    """At most so many points of a line that looks the same: of each stretch the lowest and the highest."""
    if len(points) <= most:
        return list(points)
    stretches = most // 2
    bounds = [len(points) * at // stretches for at in range(stretches + 1)]
    kept = set()
    for first, last in pairwise(bounds):
        stretch = range(first, last)
        kept |= {min(stretch, key=lambda at: points[at][1]), max(stretch, key=lambda at: points[at][1])}
    return [points[at] for at in sorted(kept)]


def _draw(panel: Panel, runs: Sequence[Facts]) -> Curve | None:
    columns = [_column(panel, run) for run in runs]
    if not any(steps for steps, _ in columns):
        return None
    figure, axes = new_figure(width=WIDTH, height=HEIGHT)
    for number, (run, (steps, values)) in enumerate(zip(runs, columns, strict=True)):
        _draw_line(axes, steps, values, number=number, above=len(runs) - 1 - number)
        _mark_restarts(axes, run, number=number)
        if panel.shows_trouble:
            _mark_trouble(axes, run)
    _dress(axes, panel)
    described = [f"{run.name}: {_ends(*found)}" for run, found in zip(runs, columns, strict=True) if found[0]]
    picture = inline_svg(
        figure, name=f"curve-{panel.metric}", title=f"{panel.title} by step", description="; ".join(described)
    )
    return Curve(title=panel.title, picture=picture, notes=list(_notes(panel, runs)))


def _lines(panel: Panel, run: Facts) -> Sequence[dict[str, Any]]:
    return run.evaluations if panel.is_evaluation else run.steps


def _column(panel: Panel, run: Facts) -> tuple[list[int], list[float]]:
    steps, values = column(_lines(panel, run), panel.metric)
    return steps, [value * panel.scale for value in values]


def _draw_line(axes: Any, steps: Sequence[int], values: Sequence[float], *, number: int, above: int) -> None:
    """Draws a run. The more are drawn above it the wider it is: lines that are equal are all seen."""
    width = 1.5 + 0.9 * min(above, 3)
    style: dict[str, Any] = {"color": run_colour(number), "linestyle": DASHES[number // 8 % len(DASHES)]}
    if len(steps) < SMOOTHED_FROM:
        axes.plot(steps, values, linewidth=width, marker="o", markersize=width + 1, **style)
        return
    axes.plot(*_unzipped(thinned(list(zip(steps, values, strict=True)))), linewidth=0.7, alpha=0.3, **style)
    even = smooth(values, window=len(values) // 20 | 1)
    axes.plot(*_unzipped(thinned(list(zip(steps, even, strict=True)))), linewidth=width, **style)


def _unzipped(points: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [step for step, _ in points], [value for _, value in points]


def _mark_restarts(axes: Any, run: Facts, *, number: int) -> None:
    for start in run.starts[1:]:
        axes.axvline(start.step, color=run_colour(number), linewidth=0.9, linestyle=(0, (2, 2)), alpha=0.8)


def _mark_trouble(axes: Any, run: Facts) -> None:
    steps = [event["step"] for start in run.starts for event in start.events if _is_trouble(event, start.has_kept)]
    if steps:
        foot = axes.get_xaxis_transform()  # steps along, the height of the plot up
        axes.plot(steps, [0.03] * len(steps), "^", color=BAD, markersize=5, transform=foot, clip_on=False)


def _is_trouble(event: Any, has_kept: Callable[[Any], bool]) -> bool:
    return event["event"] in ("skipped", "spike") and "step" in event and has_kept(event)


def _dress(axes: Any, panel: Panel) -> None:
    axes.set_xlabel("optimizer step", color=MUTED, fontsize=FONT)
    axes.set_ylabel(panel.unit, color=MUTED, fontsize=FONT)
    axes.margins(x=0.03, y=0.1)
    if panel.from_zero:
        axes.set_ylim(0, 1.1 * axes.dataLim.y1)
    axes.xaxis.get_major_locator().set_params(integer=True, nbins=6)
    axes.yaxis.get_major_locator().set_params(nbins=5)
    axes.yaxis.set_major_formatter(_number_text)


def _number_text(value: float, position: int) -> str:
    del position
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _ends(steps: Sequence[int], values: Sequence[float]) -> str:
    return f"{values[0]:.4g} at step {steps[0]}, {values[-1]:.4g} at step {steps[-1]}"


def _notes(panel: Panel, runs: Sequence[Facts]) -> Iterator[str]:
    for run in runs:
        absent = sum(panel.metric in line and line[panel.metric] is None for line in _lines(panel, run))
        if absent:
            one = "1 line has a value that is" if absent == 1 else f"{absent} lines have values that are"
            yield f"{run.name}: {one} not finite"
