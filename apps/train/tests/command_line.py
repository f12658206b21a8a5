"""Runs of the real command line on a small text, in a process of its own."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SMALL = [
    *("--launcher", "local", "--tp-size", "1", "--num-workers", "1", "--dataset-name", "text.txt"),
    *("--dataset-percentage", "100", "--holdout-percentage", "0", "--seq-length", "16", "--batch-size", "2"),
    *("--log-interval", "1", "--warmup-steps", "1", "--packing", "pad"),
]


def write_text(folder: Path, *, lines: int) -> None:
    """`text.txt`, a row a line."""
    (folder / "text.txt").write_text("".join(f"line {at} has some words in it\n" for at in range(lines)))


def start(line: list[str], folder: Path) -> subprocess.Popen[str]:
    """Starts `python -m tp2d_train ...` in `folder`; both streams are pipes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}
    return subprocess.Popen(
        [sys.executable, "-m", "tp2d_train", *line],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(line: list[str], folder: Path) -> tuple[int, str, str]:
    """The exit code, stdout and stderr of a whole run."""
    with start(line, folder) as process:
        out, err = process.communicate()
    return process.returncode, out, err


def wait_for_step(folder: Path, step: int, *, seconds: float = 300.0) -> None:
    """Returns when the run in `folder` has logged `step`."""
    end = time.monotonic() + seconds
    while not any(line["step"] >= step for line in losses(folder)):
        assert time.monotonic() < end, f"{folder} did not reach step {step} within {seconds} s"
        time.sleep(0.1)


def losses(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's steps."""
    file = folder / "metrics.jsonl"
    text = file.read_text().splitlines() if file.exists() else []
    return [line for line in map(json.loads, text) if "loss" in line]


def worker_processes(parent: int) -> list[int]:
    """The process ids of a driver's local workers."""
    children = Path(f"/proc/{parent}/task").glob("*/children")
    ids = [int(word) for child in children for word in child.read_text().split()]
    return [pid for pid in ids if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
