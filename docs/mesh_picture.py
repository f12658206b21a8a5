"""Draw docs/mesh.svg: four ranks as a 2x2 mesh, what each holds and which groups it talks to.

python docs/mesh_picture.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

BLUE, ORANGE, INK = "#2563eb", "#ea580c", "#1f2937"
FILLS = ("#dbeafe", "#ffedd5")


def main() -> None:
    """Draws the picture and saves it."""
    matplotlib.rcParams["svg.hashsalt"] = "tp2d"  # the script writes the same file each time
    figure, axes = plt.subplots(figsize=(8.4, 4.6))
    for dp in range(2):
        for tp in range(2):
            rank(axes, dp, tp)
        arrow(axes, (3.05, 3.05 - 2.1 * dp), (3.95, 3.05 - 2.1 * dp), BLUE)
        rows = ("its half of the\nbatch's rows", "the other half")[dp]
        axes.text(0.0, 3.05 - 2.1 * dp, f"node {dp}\n{rows}", va="center", color=INK)
    for tp in range(2):
        arrow(axes, (2.2 + 2.6 * tp, 2.35), (2.2 + 2.6 * tp, 1.65), ORANGE)
    axes.text(3.5, 3.35, "tp group", color=BLUE, ha="center", weight="bold")
    axes.text(3.5, 2.82, "activations,\nevery layer", color=BLUE, ha="center", va="top", fontsize=9)
    axes.text(3.5, 2.0, "dp groups: gather weights,\nsum gradients", color=ORANGE, ha="center", va="center")
    axes.set_xlim(0, 6.4)
    axes.set_ylim(0.1, 4.0)
    axes.axis("off")
    figure.savefig(Path(__file__).with_name("mesh.svg"), bbox_inches="tight", metadata={"Date": None})


def rank(axes: plt.Axes, dp: int, tp: int) -> None:
    """One rank's box."""
    x, y = 1.35 + 2.6 * tp, 2.4 - 2.1 * dp
    box = FancyBboxPatch((x, y), 1.7, 1.3, boxstyle="round,pad=0.02", facecolor=FILLS[tp], edgecolor=INK)
    axes.add_patch(box)
    axes.text(x + 0.85, y + 1.02, f"rank {dp * 2 + tp}", ha="center", weight="bold", color=INK)
    half = "1st" if tp == 0 else "2nd"
    axes.text(x + 0.85, y + 0.66, f"{half} half of every layer,", ha="center", fontsize=9, color=INK)
    axes.text(x + 0.85, y + 0.40, f"shard {dp} of 2 of it at rest", ha="center", fontsize=9, color=INK)
    axes.text(x + 0.85, y + 0.12, f"dp {dp}, tp {tp}", ha="center", fontsize=9, family="monospace", color=INK)


def arrow(axes: plt.Axes, start: tuple[float, float], end: tuple[float, float], color: str) -> None:
    """A two-headed arrow."""
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="<->", mutation_scale=16, linewidth=2, color=color))


if __name__ == "__main__":
    main()
