"""Kill a run in the middle, start the same command again, and compare with a run that was left alone, bit for bit.

    python benchmarks/kill_resume.py                 # under Ray: one worker, then every process at once
    python benchmarks/kill_resume.py --launcher local

Three runs of the built-in job with the same options: undisturbed; one worker SIGKILLed in the middle; the driver and
everything below it SIGKILLed in the middle. The two killed ones are started again with the same command and name. Every
logged figure but times, and every tensor of the last checkpoint (weights and moments), must be equal to the last bit.
Exits with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from tp2d_ckpt import find_latest

TIMES = ("tokens_per_second", "step_seconds", "memory_bytes", "mfu")


def main() -> int:
    """Run, kill, resume, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launcher", choices=("ray", "local"), default="ray")
    parser.add_argument("--engine", default="fsdp2")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument(
        "--option", action="append", default=[], help="a further option of the run, such as --zero-stage=2"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        line = [sys.executable, "-m", "tp2d_train", "--engine", options.engine, "--launcher", options.launcher]
        line += ["--storage-path", str(root), "--max-steps", str(options.steps), "--save-interval-steps", "5"]
        line += ["--log-interval", "1", "--warmup-steps", "3", *options.option, "--name"]
        subprocess.run([*line, "whole"], check=True, stdout=subprocess.DEVNULL)
        outcomes = []
        for name, kill in (("one worker", kill_a_worker), ("all processes", kill_everything)):
            run = name.replace(" ", "-")
            killed_at = kill_in_the_middle([*line, run], root / run, kill, step=options.steps // 2 + 1)
            subprocess.run([*line, run], check=True, stdout=subprocess.DEVNULL)
            resumed = [e["step"] for e in events(root / run) if e["event"] == "resumed"]
            outcome = differences(root / "whole", root / run)
            print(f"SIGKILL to {name} at step {killed_at}, resumed at {resumed}: {outcome or 'bit for bit equal'}")
            outcomes.append(outcome)
    return 1 if any(outcomes) else 0


def kill_in_the_middle(line: Sequence[str], folder: Path, kill: object, *, step: int) -> int:
    """Start, wait for `step`, kill, wait for the end; returns the last step that was logged."""
    with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while last_step(folder) < step:
            if process.poll() is not None:
                raise RuntimeError(f"the run ended with {process.returncode} before it could be killed")
            time.sleep(0.05)
        kill(process.pid)  # type: ignore[operator]
        process.wait()
    time.sleep(5)  # Ray's own processes notice that their driver is gone
    return last_step(folder)


def kill_a_worker(driver: int) -> None:
    """SIGKILL to the last rank's process."""
    workers = [p for p in psutil.Process(driver).children(recursive=True) if is_worker(p)]
    os.kill(max(p.pid for p in workers), signal.SIGKILL)


def is_worker(process: psutil.Process) -> bool:
    """A Ray Train worker, or a process that the local launcher forked."""
    command = " ".join(process.cmdline())
    return "RayTrainWorker" in command or "forkserver" in command or "spawn_main" in command


def kill_everything(driver: int) -> None:
    """SIGKILL to the driver and all below it, at once."""
    tree = psutil.Process(driver)
    for process in [tree, *tree.children(recursive=True)]:
        process.send_signal(signal.SIGKILL)


def last_step(folder: Path) -> int:
    """The last step in metrics.jsonl, 0 where there is none yet."""
    lines = metrics(folder)
    return lines[-1]["step"] if lines else 0


def metrics(folder: Path) -> list[dict]:
    """The whole lines of metrics.jsonl."""
    return read_lines(folder / "metrics.jsonl")


def events(folder: Path) -> list[dict]:
    """What the run said of itself."""
    return read_lines(folder / ".events.jsonl")


def read_lines(file: Path) -> list[dict]:
    """Every line that was written to its end."""
    text = file.read_text() if file.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def differences(whole: Path, other: Path) -> list[str]:
    """Names of the figures and tensors that are not equal to the last bit."""
    left, right = ([{k: v for k, v in line.items() if k not in TIMES} for line in metrics(f)] for f in (whole, other))
    found = [f"metrics line {i}" for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b]
    if len(left) != len(right):
        found.append(f"{len(left)} and {len(right)} lines of metrics")
    tensors, others = last_checkpoint(whole), last_checkpoint(other)
    found += sorted(tensors.keys() ^ others.keys())
    return found + [name for name in tensors.keys() & others.keys() if not torch.equal(tensors[name], others[name])]


def last_checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the newest checkpoint, whole, read by torch's own tool."""
    info = find_latest(folder / "checkpoints")
    if info is None:
        raise RuntimeError(f"{folder} has no checkpoint")
    with tempfile.NamedTemporaryFile(suffix=".pt") as file:
        dcp_to_torch_save(info.path, file.name)
        return torch.load(file.name, weights_only=True)


if __name__ == "__main__":
    sys.exit(main())
