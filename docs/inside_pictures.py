"""Draw the pictures of docs/inside.md: a layer over tp, a weight over ranks, a packed row, a killed run.

    python docs/inside_pictures.py              # all of them; the last one trains for a minute
    python docs/inside_pictures.py layer shards packing

What ranks hold is asked of `tp2d_mesh`, the row comes from `tp2d_data`, the killed run is a real one.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from tp2d_data import create_dataloader
from tp2d_mesh import IGNORED, Layout, local_boxes
from tp2d_train.report.metrics import read_lines
from tp2d_train.runs.folder import RunFolder

INK, GREY, BLUE, ORANGE = "#1f2937", "#9ca3af", "#2563eb", "#ea580c"
RANKS = ("#93c5fd", "#fdba74", "#1d4ed8", "#c2410c")
DOCUMENTS = ("#93c5fd", "#fdba74", "#86efac", "#f9a8d4", "#c4b5fd", "#fde68a")
FOLDER = Path(__file__).parent
TEXTS = (
    "A checkpoint is whole or is not a checkpoint.",
    "Sums over tp are kept.",
    "No rank holds the whole model, and none holds the corpus.",
    "Every token counts once.",
    "The order of samples is the same on any number of ranks.",
    "A mask is made by nobody.",
    "Rows are full.",
    "A run that is killed goes on.",
)


def layer() -> None:
    """One decoder layer on two tp ranks: what each computes, and the two sums."""
    figure, axes = _canvas((9.6, 4.3), (0, 19.4), (-0.3, 8.3))
    for rank in range(2):
        y = 4.4 - 3.9 * rank
        axes.text(0.1, y + 1.3, f"tp rank {rank}", va="center", color=INK, weight="bold")
        half = "1st" if rank == 0 else "2nd"
        blocks = (
            (2.6, "norm", "whole", "white"),
            (4.6, "q, k, v", f"{half} half\nof the heads", RANKS[rank]),
            (6.9, "attention", "its heads", RANKS[rank]),
            (9.2, "o", f"{half} half\nof its inputs", RANKS[rank]),
            (12.1, "norm", "whole", "white"),
            (14.1, "gate, up", f"{half} half\nof the rows", RANKS[rank]),
            (16.4, "down", f"{half} half\nof its inputs", RANKS[rank]),
        )
        for x, name, part, colour in blocks:
            axes.add_patch(FancyBboxPatch((x, y), 1.7, 2.6, boxstyle="round,pad=0.08", fc=colour, ec=INK, alpha=0.85))
            axes.text(x + 0.85, y + 1.9, name, ha="center", va="center", color=INK, weight="bold", fontsize=9)
            axes.text(x + 0.85, y + 0.8, part, ha="center", va="center", color=INK, fontsize=7.5)
    for x in (11.4, 18.6):
        _arrow(axes, (x, 3.2), (x, 4.3), BLUE)
        axes.text(x, 3.75, "  sum", color=BLUE, weight="bold", va="center", fontsize=9)
    for x in (4.35, 13.85):
        _arrow(axes, (x, 3.2), (x, 4.3), ORANGE)
        axes.text(x, 3.75, "  sum of\n  gradients", color=ORANGE, va="center", fontsize=8)
    axes.text(11.4, 7.7, "forward: one all-reduce after o, one after down", color=BLUE, ha="right", fontsize=9)
    axes.text(11.8, 7.7, "backward: one before q, k, v, one before gate, up", color=ORANGE, fontsize=9)
    _save(figure, "layer")


def shards() -> None:
    """Who holds which box of three parameters at rest, on a 2x2 mesh."""
    layout = Layout(dp=2, tp=2)
    parameters = (("q_proj.weight", (8, 8), 0), ("o_proj.weight", (8, 8), 1), ("norm.weight", (8,), None))
    figure, panels = plt.subplots(1, 3, figsize=(8.4, 2.9), width_ratios=(8, 8, 2.4))
    for panel, (name, shape, tp_dim) in zip(panels, parameters, strict=True):
        held: dict[tuple[tuple[int, ...], tuple[int, ...]], list[int]] = {}
        for rank in range(layout.world_size):
            for box in local_boxes(shape, layout=layout, rank=rank, tp_dim=tp_dim):
                held.setdefault((box.offsets, box.shape), []).append(rank)
        for (offsets, size), ranks in held.items():
            (top, left), (height, width) = (*offsets, 0)[:2], (*size, 1)[:2]
            colour = RANKS[ranks[0]] if len(ranks) == 1 else GREY
            panel.add_patch(Rectangle((left, top), width, height, fc=colour, ec="white", lw=2, alpha=0.85))
            ink = "white" if colour in RANKS[2:] else INK
            text = f"rank {ranks[0]}" if len(ranks) == 1 else "ranks\n" + " and ".join(map(str, ranks))
            panel.text(left + width / 2, top + height / 2, text, ha="center", va="center", fontsize=8, color=ink)
        panel.set(xlim=(0, (*shape, 1)[1]), ylim=(shape[0], 0), xticks=[], yticks=[])
        split = {0: "split by rows over tp", 1: "split by columns over tp", None: "whole on tp"}[tp_dim]
        panel.set_title(f"{name}\n{split}", fontsize=9, color=INK)
        panel.spines[:].set_visible(False)
    figure.tight_layout()
    _save(figure, "shards")


def packing() -> None:
    """Rows as the loader makes them, and which token of the first row sees which."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus.txt"
        corpus.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
        given: dict[str, Any] = {"dataset_percentage": 100, "holdout_percentage": 0, "num_workers": 0}
        rows = {mode: _rows(corpus, packing=mode, **given) for mode in ("pad", "best_fit")}
    figure, panels = plt.subplots(1, 3, figsize=(9.6, 3.4), width_ratios=(1.2, 1.2, 1))
    for panel, (mode, documents) in zip(panels, rows.items(), strict=False):
        panel.imshow(_colours(documents), aspect="auto", interpolation="nearest")
        filled = (documents >= 0).mean()
        panel.set_title(f"packing={mode}: {len(documents)} rows, {filled:.0%} filled", fontsize=9, color=INK)
        panel.set(
            xlabel="position", yticks=range(len(documents)), yticklabels=[f"row {i}" for i in range(len(documents))]
        )
        panel.tick_params(labelsize=7)
    index = max(range(len(rows["best_fit"])), key=lambda row: rows["best_fit"][row].max())
    row = rows["best_fit"][index]
    own = np.tril(row[:, None] == row[None, :]) & (row >= 0)[:, None]
    panels[2].imshow(_colours(np.where(own, row[:, None], -1)), interpolation="nearest")
    panels[2].set_title(f"row {index}: who (down) sees whom (across)", fontsize=9, color=INK)
    panels[2].tick_params(labelsize=7)
    figure.tight_layout()
    _save(figure, "packing")


def _rows(corpus: Path, **given: Any) -> np.ndarray:
    """The document of each position, `(rows, seq)`, numbered from 0 in each row; -1 where padding is."""
    loader = create_dataloader("builtin:tiny", str(corpus), 32, 1, 0, 1, last_batch="pad", append_eos=True, **given)
    rows = []
    for batch in loader:
        begins = batch["position_ids"][0] == 0 if "position_ids" in batch else torch.arange(32) == 0
        inside = batch["labels"][0] != IGNORED
        inside |= begins & inside.roll(-1)  # a document's first token is nobody's label
        rows.append(torch.where(inside, begins.cumsum(0) - 1, -1).numpy())
    return np.stack([row for row in rows if (row >= 0).any()])


def _colours(documents: np.ndarray) -> np.ndarray:
    table = np.array([matplotlib.colors.to_rgb(c) for c in (*DOCUMENTS, "#f3f4f6")])
    return table[np.where(documents < 0, len(DOCUMENTS), documents % len(DOCUMENTS))]


def crash() -> None:
    """A run that is killed and started again by the same command: its steps over time."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tp2d_train", "train", "--launcher", "local", "--name", "run"]
        command += ["--storage-path", folder, "--max-steps", "60", "--save-interval-steps", "15", "--log-interval", "1"]
        command += ["--eval-interval-steps", "1000", "--batch-size-per-gpu", "2"]
        run = RunFolder(Path(folder) / "run")
        before, killed = _killed_at(command, run, step=38)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        lines = [line for line in read_lines(run.metrics)[0] if "loss" in line]
        saved = [event for event in read_lines(run.events)[0] if event["event"] == "saved"]
        resumed = [event["step"] for event in read_lines(run.events)[0] if event["event"] == "resumed"][-1]
    start = before[0]["time"]
    after = [line for line in lines if line["time"] > killed]
    figure, axes = plt.subplots(figsize=(8.4, 3.2))
    for part, colour, name in ((before, BLUE, "first process"), (after, ORANGE, "the same command again")):
        axes.plot(
            [line["time"] - start for line in part], [line["step"] for line in part], color=colour, lw=2, label=name
        )
    axes.plot(
        [s["time"] - start for s in saved], [s["step"] for s in saved], "o", color=INK, label="checkpoint committed"
    )
    axes.axvline(killed - start, color=GREY, ls="--")
    axes.text(killed - start, 62, " SIGKILL", color=INK, fontsize=9, va="top")
    axes.axhline(resumed, color=GREY, lw=0.8, ls=":")
    axes.set(xlabel="seconds since the first step", ylabel="step")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    figure.tight_layout()
    _save(figure, "crash")


def _points(lines: list[dict[str, Any]], start: float) -> tuple[list[float], list[int]]:
    """Seconds and steps."""
    return [line["time"] - start for line in lines], [line["step"] for line in lines]


def _killed_at(command: list[str], run: RunFolder, *, step: int) -> tuple[list[dict[str, Any]], float]:
    """Kills a run and all its processes once it has logged `step`; its lines so far, and when it was."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True) as process:
        while True:
            lines = [line for line in read_lines(run.metrics)[0] if "loss" in line] if run.metrics.exists() else []
            if lines and lines[-1]["step"] >= step:
                break
            if process.poll() is not None:
                raise SystemExit(f"the run ended with {process.returncode} before it could be killed")
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
        return lines, time.time()


def _canvas(size: tuple[float, float], x: tuple[float, float], y: tuple[float, float]) -> tuple[Any, Any]:
    figure, axes = plt.subplots(figsize=size)
    axes.set(xlim=x, ylim=y)
    axes.axis("off")
    return figure, axes


def _arrow(axes: Any, start: tuple[float, float], end: tuple[float, float], colour: str) -> None:
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="<->", mutation_scale=12, linewidth=2, color=colour))


def _save(figure: Any, name: str) -> None:
    path = FOLDER / f"{name}.svg"
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    print(f"written: {path.name}")


PICTURES = {"layer": layer, "shards": shards, "packing": packing, "crash": crash}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", nargs="*", choices=[*PICTURES, []], help="default: all")
    matplotlib.rcParams["svg.hashsalt"] = "tp2d"  # the script writes the same file each time
    for name in parser.parse_args().pictures or PICTURES:
        PICTURES[name]()
