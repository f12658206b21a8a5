"""The picture of a comparison: loss curves on one another, their differences, bars of throughput and of memory."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tp2d_train.comparison.rows import Losses, Row
from tp2d_train.comparison.table import MIB

INK, GREY = "#22262e", "#5b6270"
MESH_COLORS = ("#2f6db3", "#d1495b", "#0f766e", "#f59e0b", "#7c3aed", "#64748b", "#db2777", "#65a30d")
LIGHTEST = 0.6  # the share of white in the last of several tints
FLAT = 1e-7  # half the height of a panel of differences that are all zero
PLANNED, MEASURED = "#c3cbd6", "#5b6270"


def draw(rows: Sequence[Row], curves: Mapping[str, Losses], path: Path, *, title: str, device: str) -> None:
    """Writes the picture as PNG.

    Args:
        rows: of the runs that have finished, at least one.
        curves: their losses by name, in the same order; differences are to the first.
        path: the file.
        title: above it.
        device: the type of the devices; on `cpu` the measured memory is that of a whole process.
    """
    # The figure is made without pyplot: no global state, no window system.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 5.4 + 0.36 * len(rows)), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    heights = [4.0, 1.0 + 0.36 * len(rows)]
    (losses, differences), (speed, memory) = figure.subplots(2, 2, gridspec_kw={"height_ratios": heights})
    looks = {row.name: look for row, look in zip(rows, _looks(rows), strict=True)}
    _draw_losses(losses, curves, looks)
    _draw_differences(differences, curves, looks, first=label(rows[0], rows))
    _draw_speed(speed, rows, looks)
    _draw_memory(memory, rows, device=device)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=INK)
    figure.savefig(path, metadata={"Software": None})


def label(row: Row, rows: Sequence[Row]) -> str:
    """What a row is called beside the others: the recomputation only where they differ in it."""
    alike = len({one.activation_checkpointing for one in rows}) == 1
    return f"{row.engine} {row.mesh}{'' if alike else f' {row.activation_checkpointing}'}"


def _looks(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Of each row: a colour by mesh, its tint by engine and recomputation; wide lines come first, so that all show."""
    from matplotlib.colors import to_rgb

    meshes = list(dict.fromkeys(row.mesh for row in rows))
    kinds = list(dict.fromkeys((row.engine, row.activation_checkpointing) for row in rows))
    looks = []
    for at, row in enumerate(rows):
        white = LIGHTEST * kinds.index((row.engine, row.activation_checkpointing)) / max(1, len(kinds) - 1)
        pure = to_rgb(MESH_COLORS[meshes.index(row.mesh) % len(MESH_COLORS)])
        color = tuple(part + (1 - part) * white for part in pure)
        looks.append({"color": color, "linewidth": 1.4 + 7.0 * (len(rows) - 1 - at) / max(1, len(rows) - 1)})
    return looks


def _draw_losses(axes: Any, curves: Mapping[str, Losses], looks: Mapping[str, dict[str, Any]]) -> None:
    for name, losses in curves.items():
        axes.plot(list(losses), list(losses.values()), **looks[name])
    _dress(
        axes, "loss (nats per token), curves on one another, in the colours of the bars", x="optimizer step", grid="y"
    )


def _draw_differences(
    axes: Any, curves: Mapping[str, Losses], looks: Mapping[str, dict[str, Any]], *, first: str
) -> None:
    reference = next(iter(curves.values()))
    most = 0.0
    for name, losses in curves.items():
        steps = [step for step in losses if step in reference]
        differences = [losses[step] - reference[step] for step in steps]
        axes.plot(steps, differences, **{**looks[name], "linewidth": looks[name]["linewidth"] / 2})
        most = max([most, *map(abs, differences)])
    axes.set_ylim(-1.15 * (most or FLAT), 1.15 * (most or FLAT))
    _dress(axes, f"loss less that of {first}", x="optimizer step", grid="y")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.1e}" if value else "0")


def _draw_speed(axes: Any, rows: Sequence[Row], looks: Mapping[str, dict[str, Any]]) -> None:
    speeds = [row.tokens_per_second or 0.0 for row in rows]
    axes.barh(range(len(rows)), speeds, height=0.66, color=[looks[row.name]["color"] for row in rows])
    _write_sizes(axes, speeds)
    _name_bars(axes, rows)
    _dress(axes, "tokens per second, median of the steps", x="", grid="x")


def _draw_memory(axes: Any, rows: Sequence[Row], *, device: str) -> None:
    planned = [(row.planned_memory_bytes or 0) / MIB for row in rows]
    measured = [(row.memory_bytes or 0) / MIB for row in rows]
    whole = " (whole process)" if device == "cpu" else ""
    for sizes, offset, color, name in (
        (planned, -0.18, PLANNED, "planned"),
        (measured, 0.18, MEASURED, f"measured{whole}"),
    ):
        axes.barh([at + offset for at in range(len(rows))], sizes, height=0.34, color=color, label=name)
        _write_sizes(axes, sizes, offset=offset)
    _name_bars(axes, rows)
    _dress(axes, "MiB of rank 0 at the peak", x="", grid="x")
    axes.legend(fontsize=8, frameon=False, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, borderaxespad=0.2)


def _write_sizes(axes: Any, sizes: Sequence[float], *, offset: float = 0.0) -> None:
    for at, size in enumerate(sizes):
        axes.text(size, at + offset, f" {size:,.0f}" if size else "", va="center", fontsize=7.5, color=GREY)


def _name_bars(axes: Any, rows: Sequence[Row]) -> None:
    axes.set_yticks(range(len(rows)), [label(row, rows) for row in rows])
    axes.invert_yaxis()
    axes.margins(x=0.14)


def _dress(axes: Any, title: str, *, x: str, grid: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.set_xlabel(x, fontsize=9, color=GREY)
    axes.tick_params(labelsize=8.5, colors=INK, length=0)
    axes.grid(axis=grid, color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#c3c8cf")
    if x:
        axes.xaxis.get_major_locator().set_params(integer=True)
