"""The table and the picture of what `data_speed.py` has measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.parent / "docs"
NAMES = {"tutorial": "tutorials' recipe", "tp2d": "tp2d"}
COLOURS = {"tutorial": "#ea580c", "tp2d": "#2563eb"}
SMOOTHED_OVER = 10.0  # seconds

Figures = dict[str, Any]


def read_kept(path: Path) -> list[Figures]:
    """The figures measured so far."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def write_report(path: Path) -> int:
    """Writes the table beside the figures at `path`, and the picture to docs/ where they are the repository's own."""
    kept = read_kept(path)
    newest = {_what(figures): figures for figures in kept if figures["purpose"] == "final"}
    finals = list(newest.values())
    finals.sort(key=lambda figures: (figures["length"], figures["engine"] != "fsdp2", figures["recipe"] != "tutorial"))
    if not finals:
        print(f"nothing to report: {path} holds no measured run")
        return 1
    table = path.with_suffix(".md")
    table.write_text("\n".join([*_head(finals), *_table(finals), *_tries(kept)]) + "\n", encoding="utf-8")
    picture = (DOCS if path.parent.name == "results" else path.parent) / "data_speed.png"
    draw(finals, picture)
    print(f"{table.read_text(encoding='utf-8')}\nwritten: {table}, {picture}")
    return 0


def _head(finals: list[Figures]) -> list[str]:
    first = finals[0]
    packages = ", ".join(f"{name} {number}" for name, number in first["versions"].items())
    lines = sorted({figures["held_out_tokens"] for figures in finals})
    return [
        "# A whole job against the tutorials' recipe",
        "",
        f"`python benchmarks/data_speed.py`, {first['cores']} cores, CPU, gloo, fp32, 2x2, {packages}.",
        "See the script for what is measured and how. A useful token is a predicted one, counted once; wall seconds",
        "are those of the process, from its start to its exit, with start-up, tokenising and saving. The held-out loss",
        f"is the mean over {', '.join(map(str, lines))} tokens of lines that neither has seen, with the weights saved",
        "at the end.",
        "",
    ]


def _table(finals: list[Figures]) -> list[str]:
    head = "| seq_length | engine | recipe | learning rate | wall s | steps | useful tokens | useful tok/s | ratio"
    rows = [f"{head} | held-out loss |", "|---" * 10 + "|"]
    for figures in finals:
        what = [figures["length"], figures["engine"], _name(figures), f"{figures['rate']:g}"]
        work = [f"{figures['wall_seconds']:.0f}", figures["steps"], f"{figures['tokens']:,}"]
        result = [f"{_speed(figures):.0f}", _ratio(figures, finals), f"{figures['held_out_loss']:.3f}"]
        rows.append(f"| {' | '.join(map(str, [*what, *work, *result]))} |")
    return rows


def _tries(kept: list[Figures]) -> list[str]:
    tries = [figures for figures in kept if figures["purpose"] == "try"]
    if not tries:
        return []
    rows = [
        "",
        f"Learning rates, each tried for {tries[0]['seconds']:.0f} s with fsdp2; the better one was taken above:",
        "",
    ]
    rows += ["| seq_length | recipe | learning rate | steps | held-out loss |", "|---|---|---|---|---|"]
    tries.sort(key=lambda figures: (figures["length"], figures["recipe"] != "tutorial", figures["rate"]))
    return rows + [
        f"| {f['length']} | {_name(f)} | {f['rate']:g} | {f['steps']} | {f['held_out_loss']:.3f} |" for f in tries
    ]


def _what(figures: Figures) -> tuple[Any, ...]:
    return tuple(figures[name] for name in ("length", "engine", "recipe", "packing"))


def _name(figures: Figures) -> str:
    return NAMES[figures["recipe"]] + (f", {figures['packing']}" if figures["recipe"] == "tp2d" else "")


def _speed(figures: Figures) -> float:
    return figures["tokens"] / figures["wall_seconds"]


def _ratio(figures: Figures, finals: list[Figures]) -> str:
    """To the baseline of the same engine and length."""
    same = [f for f in finals if all(f[name] == figures[name] for name in ("engine", "length"))]
    base = next((f for f in same if f["recipe"] == "tutorial"), None)
    return "" if base is None else f"{_speed(figures) / _speed(base):.2f}"


def draw(finals: list[Figures], path: Path) -> None:
    """Training loss over wall time, a panel per engine and length; a dot is the held-out loss at the end."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    cases = list(dict.fromkeys((figures["engine"], figures["length"]) for figures in finals))
    size = (3.6 * len(cases), 3.2)
    picture, panels = plt.subplots(1, len(cases), sharey=True, squeeze=False, figsize=size, dpi=150)
    for panel, (engine, length) in zip(panels[0], cases, strict=True):
        for figures in finals:
            if (figures["engine"], figures["length"]) == (engine, length):
                _draw_run(panel, figures)
        panel.set_title(f"{engine}, seq_length {length}", fontsize=9)
        panel.set_xlabel("wall seconds since the command")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("training loss; dot: held-out")
    panels[0][0].legend(frameon=False, fontsize=8)
    picture.tight_layout()
    picture.savefig(path, metadata={"Software": None})
    plt.close(picture)


def _draw_run(panel: Any, figures: Figures) -> None:
    colour = COLOURS[figures["recipe"]]
    curve = _smooth(figures["curve"])
    panel.plot([time for time, _ in curve], [loss for _, loss in curve], color=colour, label=_name(figures))
    panel.plot([figures["wall_seconds"]], [figures["held_out_loss"]], "o", color=colour, markersize=5)


def _smooth(curve: list[list[float]]) -> list[tuple[float, float]]:
    """The mean loss of every `SMOOTHED_OVER` seconds, at their middle."""
    bins: dict[int, list[float]] = {}
    for seconds, loss in curve:
        bins.setdefault(int(seconds // SMOOTHED_OVER), []).append(loss)
    return [((number + 0.5) * SMOOTHED_OVER, sum(part) / len(part)) for number, part in sorted(bins.items())]
