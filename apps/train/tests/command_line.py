"""Runs of the command line on a small text, in this process or in one of their own."""

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tp2d_train.commands.train import main

SMALL = [
    *("--launcher", "local", "--tp-size", "1", "--num-workers", "1", "--dataset-name", "text.txt"),
    *("--dataset-percentage", "100", "--holdout-percentage", "0", "--seq-length", "16", "--batch-size", "2"),
    *("--log-interval", "1", "--warmup-steps", "1", "--packing", "pad"),
]


def write_text(folder: Path, *, lines: int) -> None:
    """`text.txt`, a row a line."""
    (folder / "text.txt").write_text("".join(f"line {at} has some words in it\n" for at in range(lines)))


def start(line: list[str], folder: Path) -> subprocess.Popen[str]:
    """Starts `tp2d train ...` in `folder`; both streams are pipes."""
    command = [sys.executable, "-m", "tp2d_train", "train", *line]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run_while(line: list[str], act: Callable[[Callable[[], bool]], None]) -> int:
    """The exit code of a command line in this process, while `act` runs in a thread.

    `act` is given a function that says whether the command still runs.
    """
    ended = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        acting = pool.submit(act, lambda: not ended.is_set())
        try:
            code = main(line)
        finally:
            ended.set()
        acting.result()
    return code


def wait_for_step(folder: Path, step: int, *, running: Callable[[], bool], seconds: float = 300.0) -> None:
    """Returns when the run in `folder` has logged `step`; fails where it no longer runs."""
    end = time.monotonic() + seconds
    while not any(line["step"] >= step for line in losses(folder)):
        assert running(), f"the run in {folder} ended before step {step}"
        assert time.monotonic() < end, f"{folder} did not reach step {step} within {seconds} s"
        time.sleep(0.05)


def losses(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's steps; a line that is just being written is none yet."""
    file = folder / "metrics.jsonl"
    whole = file.read_text().rpartition("\n")[0].splitlines() if file.exists() else []
    return [line for line in map(json.loads, whole) if "loss" in line]


def processes_below(pid: int, *, command: bytes) -> list[int]:
    """The ids of the processes below `pid` whose command line has `command`."""
    files = Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(word) for file in files for word in file.read_text().split()]
    found = [child for child in children if command in Path(f"/proc/{child}/cmdline").read_bytes()]
    return found + [below for child in children for below in processes_below(child, command=command)]


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]
