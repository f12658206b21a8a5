"""The picture of a run: the training loss over the steps, and the held-out loss where it was evaluated."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tp2d_train.report.metrics import column

TRAIN, HELD_OUT, GREY = "#2f6db3", "#d1495b", "#5b6270"


def plot_loss(records: Sequence[Mapping[str, Any]], path: Path, *, title: str) -> bool:
    """Draws the lines of `metrics.jsonl` to a PNG at `path`.

    Returns:
        Whether there was anything to draw; a run that logs nothing has no picture.
    """
    steps, losses = column(records, "loss")
    eval_steps, eval_losses = column(records, "eval_loss")
    if not steps and not eval_steps:
        return False
    # The figure is made without pyplot: no global state, no window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    _draw_train(axes, steps, losses)
    _draw_held_out(axes, eval_steps, eval_losses)
    _dress(axes, title)
    figure.savefig(path)
    return True


def smooth(values: Sequence[float], *, window: int) -> list[float]:
    """The mean over up to `window` neighbours of every value, centred, narrower towards both ends."""
    half = window // 2
    spans = [min(half, at, len(values) - 1 - at) for at in range(len(values))]
    return [sum(values[at - span : at + span + 1]) / (2 * span + 1) for at, span in enumerate(spans)]


def _draw_train(axes: Any, steps: Sequence[int], losses: Sequence[float]) -> None:
    if len(losses) < 40:
        axes.plot(steps, losses, color=TRAIN, linewidth=1.8, marker="o", markersize=3, label="training")
        return
    axes.plot(steps, losses, color=TRAIN, linewidth=0.8, alpha=0.3)
    axes.plot(steps, smooth(losses, window=len(losses) // 20 | 1), color=TRAIN, linewidth=2.0, label="training")


def _draw_held_out(axes: Any, steps: Sequence[int], losses: Sequence[float]) -> None:
    if not steps:
        return
    axes.plot(steps, losses, color=HELD_OUT, linewidth=1.2, marker="o", markersize=5, label="held out")
    place = {"xytext": (0, 9), "textcoords": "offset points", "ha": "center", "color": HELD_OUT}
    axes.annotate(f"{losses[-1]:.3f}", (steps[-1], losses[-1]), **place)


def _dress(axes: Any, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, color="#22262e")
    axes.set_xlabel("optimizer step", color=GREY)
    axes.set_ylabel("loss (nats per token)", color=GREY)
    axes.margins(x=0.03)
    axes.grid(axis="y", color="#e3e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=GREY, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color("#c3c8cf")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(facecolor="white", edgecolor="none", framealpha=1.0, loc="upper right")
