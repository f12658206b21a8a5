"""Kill a run in the middle, start the same command again, and compare with an undisturbed run, bit for bit.

    python benchmarks/kill_resume.py                    # about 4 minutes, under Ray
    python benchmarks/kill_resume.py --launcher local   # about 3 minutes

Three runs of the built-in job with the same options: the first is undisturbed; in the second one worker gets SIGKILL
in the middle; in the third the driver and all processes below it do. The two killed runs are started again with the
same command and name. All metrics but the times, and every tensor of the last checkpoint (weights and moments), must
then be equal to the last bit. Exits with 1 if anything differs.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import torch
from common import Measured, read_lines, run_logged, train_command
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from tp2d_ckpt import find_latest
from tp2d_train.runs.folder import RunFolder

TIMES = ("time", "tokens_per_second", "label_tokens_per_second", "step_seconds", "memory_bytes", "mfu")


def main() -> int:
    """Runs, kills, resumes and compares."""
    options = read_options()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        line = ["--engine", options.engine, "--launcher", options.launcher, "--storage-path", str(root)]
        line += ["--max-steps", str(options.steps), "--save-interval-steps", "5", "--log-interval", "1"]
        line += ["--warmup-steps", "3", *options.option, "--name"]
        run_logged(train_command(*line, "whole"))
        found = [
            kill_and_resume(line, root, name=name, kill=kill, step=options.steps // 2 + 1)
            for name, kill in (("one worker", kill_a_worker), ("all processes", kill_everything))
        ]
    return 1 if any(found) else 0


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--launcher", choices=("ray", "local"), default="ray")
    parser.add_argument("--engine", default="fsdp2")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--option", action="append", default=[], help="another option of the run: --zero-stage=2")
    return parser.parse_args()


def kill_and_resume(line: list[str], root: Path, *, name: str, kill: Callable[[int], None], step: int) -> list[str]:
    """Kills a run at `step`, resumes it, and returns what then differs from the run `whole`; prints it too."""
    run = RunFolder(root / name.replace(" ", "-"))
    command = train_command(*line, run.path.name)
    killed_at = kill_in_the_middle(command, run, kill, step=step)
    run_logged(command)
    resumed = [event["step"] for event in read_lines(run.events) if event["event"] == "resumed"]
    found = differences(RunFolder(root / "whole"), run)
    print(f"SIGKILL to {name} at step {killed_at}, resumed at {resumed}: {found or 'bit for bit equal'}", flush=True)
    return found


def kill_in_the_middle(command: Sequence[str], run: RunFolder, kill: Callable[[int], None], *, step: int) -> int:
    """Starts, waits for `step`, kills, waits for the end; returns the last step that was logged."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while last_step(run) < step:
            if process.poll() is not None:
                raise RuntimeError(f"the run ended with {process.returncode} before it could be killed")
            time.sleep(0.05)
        kill(process.pid)
        process.wait()
    time.sleep(5)  # Ray's own processes notice that their driver is gone
    return last_step(run)


def kill_a_worker(driver: int) -> None:
    """SIGKILL to the last rank's process."""
    workers = [p for p in psutil.Process(driver).children(recursive=True) if is_worker(p)]
    os.kill(max(p.pid for p in workers), signal.SIGKILL)


def is_worker(process: psutil.Process) -> bool:
    """A Ray Train worker, or a process that the local launcher forked."""
    command = " ".join(process.cmdline())
    return "RayTrainWorker" in command or "launch.ranks" in command


def kill_everything(driver: int) -> None:
    """SIGKILL to the driver and all processes below it, at once."""
    tree = psutil.Process(driver)
    for process in [tree, *tree.children(recursive=True)]:
        process.send_signal(signal.SIGKILL)


def last_step(run: RunFolder) -> int:
    """The last step that was logged, 0 where there is none yet."""
    lines = read_lines(run.metrics)
    return lines[-1]["step"] if lines else 0


def differences(whole: RunFolder, other: RunFolder) -> list[str]:
    """The lines of metrics and the tensors that are not equal to the last bit."""
    left, right = metrics(whole), metrics(other)
    found = [f"metrics line {i}" for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b]
    if len(left) != len(right):
        found.append(f"{len(left)} and {len(right)} lines of metrics")
    tensors, others = last_checkpoint(whole), last_checkpoint(other)
    found += sorted(tensors.keys() ^ others.keys())
    return found + [name for name in tensors.keys() & others.keys() if not torch.equal(tensors[name], others[name])]


def metrics(run: RunFolder) -> list[Measured]:
    """The metrics of every logged step and evaluation, without times and memory."""
    return [{name: value for name, value in line.items() if name not in TIMES} for line in read_lines(run.metrics)]


def last_checkpoint(run: RunFolder) -> dict[str, torch.Tensor]:
    """Every tensor of the newest checkpoint, whole, read by torch's own tool."""
    info = find_latest(run.checkpoints)
    if info is None:
        raise RuntimeError(f"{run.path} has no checkpoint")
    with tempfile.NamedTemporaryFile(suffix=".pt") as file:
        dcp_to_torch_save(info.path, file.name)
        return torch.load(file.name, weights_only=True)


if __name__ == "__main__":
    sys.exit(main())
