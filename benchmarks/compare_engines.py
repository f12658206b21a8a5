"""Both engines on the same seed, data and mesh: how far their losses are apart, their speed, a picture of the curves.

    python benchmarks/compare_engines.py --picture docs/engines.png

The built-in job on 2x2, once with each engine (and ZeRO stage), through the command line. Prints a table; speed is a
ratio to fsdp2 in the same call, without the first step. Exits with 1 if two losses of the first 20 steps differ by 1e-5
or more.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt

RUNS = {
    "fsdp2": ["--engine", "fsdp2"],
    "autotp, ZeRO 1": ["--engine", "autotp", "--zero-stage", "1"],
    "autotp, ZeRO 2": ["--engine", "autotp", "--zero-stage", "2"],
}
STYLES = {
    "fsdp2": {"color": "#bfdbfe", "linewidth": 8},
    "autotp, ZeRO 1": {"color": "#2563eb", "linewidth": 3},
    "autotp, ZeRO 2": {"color": "#ea580c", "linewidth": 1.2, "linestyle": "--"},
}


def main() -> int:
    """Run, compare, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path, help="where to draw the curves")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--launcher", choices=("ray", "local"), default="local")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: run(line, Path(folder), options) for name, line in RUNS.items()}
        curves = {name: losses(path) for name, path in runs.items()}
        print_table(runs, curves)
    first, *others = curves.values()
    worst = {
        steps: max(abs(a - b) for other in others for a, b in zip(first[:steps], other[:steps], strict=True))
        for steps in (20, options.steps)
    }
    for steps, difference in worst.items():
        print(f"largest difference of two engines' losses over {steps} steps: {difference:.1e}")
    if options.picture:
        draw(curves, options.picture)
    return 0 if worst[20] < 1e-5 else 1


def run(line: list[str], root: Path, options: argparse.Namespace) -> Path:
    """Train once; returns the run's folder."""
    name = "-".join(word.strip("-") for word in line)
    command = [sys.executable, "-m", "tp2d_train", *line, "--launcher", options.launcher, "--storage-path", str(root)]
    command += ["--name", name, "--max-steps", str(options.steps), "--log-interval", "1"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return root / name


def losses(path: Path) -> list[float]:
    """The loss of every step of one run."""
    lines = [json.loads(text) for text in (path / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def print_table(runs: dict[str, Path], curves: dict[str, list[float]]) -> None:
    """A row per run: its last loss, its speed against the first run's, its peak memory on rank 0."""
    summaries = {name: json.loads((path / "summary.json").read_text()) for name, path in runs.items()}
    base = next(iter(summaries.values()))["tokens_per_second"]
    print("| engine | loss of the last step | tokens per second, ratio | MiB, rank 0 |\n|---|---|---|---|")
    for name, summary in summaries.items():
        speed, memory = summary["tokens_per_second"] / base, summary["memory_bytes"] / 2**20
        print(f"| {name} | {curves[name][-1]:.6f} | {speed:.2f} | {memory:.0f} |")


def draw(curves: dict[str, list[float]], path: Path) -> None:
    """All curves in one picture, thick below thin, so that each can be seen where they are equal."""
    figure, axes = plt.subplots(figsize=(7.2, 3.6), dpi=150)
    for name, values in curves.items():
        axes.plot(range(1, len(values) + 1), values, label=name, **STYLES[name])
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss (nats per token)")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Software": None})


if __name__ == "__main__":
    sys.exit(main())
