"""Both engines on the same seed, data and mesh: how far their losses are apart, their speed, a picture of the curves.

    python benchmarks/compare_engines.py --picture docs/engines.png     # about 3 minutes on two cores
    python benchmarks/compare_engines.py --steps 20                     # about 2 minutes

The built-in job on 2x2, once with each engine (and ZeRO stage), through the command line. Prints a table; the speed is
a ratio to that of fsdp2 in the same call, without the first step. Exits with 1 if two losses of the first 20 steps
differ by 1e-5 or more.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from common import Curve, draw, read_lines, run_logged, table, train_command
from tp2d_train.runs.folder import RunFolder

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
    """Runs, compares and draws."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=Path, help="where to draw the curves")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--launcher", choices=("ray", "local"), default="local")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: run(line, Path(folder), options) for name, line in RUNS.items()}
        curves = {name: losses(made) for name, made in runs.items()}
        print("\n".join(table_of(runs, curves)))
    first, *others = curves.values()
    worst = {
        steps: max(abs(a - b) for other in others for a, b in zip(first[:steps], other[:steps], strict=True))
        for steps in (20, options.steps)
    }
    for steps, difference in worst.items():
        print(f"largest difference of two engines' losses over {steps} steps: {difference:.1e}")
    if options.picture:
        drawn = [
            Curve(label=name, points=list(enumerate(values, start=1)), style=STYLES[name])  # thick below thin: all show
            for name, values in curves.items()
        ]
        draw({"": drawn}, options.picture, x="optimizer step", y="loss (nats per token)", size=(7.2, 3.6), font=11)
    return 0 if worst[20] < 1e-5 else 1


def run(line: list[str], root: Path, options: argparse.Namespace) -> RunFolder:
    """Trains once; returns the run's folder."""
    name = "-".join(word.strip("-") for word in line)
    line = [*line, "--launcher", options.launcher, "--storage-path", str(root), "--name", name]
    run_logged(train_command(*line, "--max-steps", str(options.steps), "--log-interval", "1"))
    return RunFolder(root / name)


def losses(run: RunFolder) -> list[float]:
    """The loss of every step of one run."""
    return [line["loss"] for line in read_lines(run.metrics) if "loss" in line]


def table_of(runs: dict[str, RunFolder], curves: dict[str, list[float]]) -> list[str]:
    """A row for each run: its last loss, its speed against the first run's, its peak memory on rank 0."""
    summaries = {name: json.loads(run.summary.read_text()) for name, run in runs.items()}
    base = next(iter(summaries.values()))["tokens_per_second"]
    rows = []
    for name, summary in summaries.items():
        speed, memory = summary["tokens_per_second"] / base, summary["memory_bytes"] / 2**20
        rows.append([name, f"{curves[name][-1]:.6f}", f"{speed:.2f}", f"{memory:.0f}"])
    return table("engine | loss of the last step | tokens per second, ratio | MiB, rank 0", rows)


if __name__ == "__main__":
    sys.exit(main())
