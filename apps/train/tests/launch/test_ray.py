"""The main job under Ray, by its command, on a real cluster of this machine."""

import json
import math
import os
import re
import signal
from pathlib import Path

import pytest

from apps.train.tests.commands import losses, run, start, wait_for_step

pytest.importorskip("ray")
pytestmark = pytest.mark.timeout(900)


def test_the_built_in_job_learns_stops_and_resumes(tmp_path: Path) -> None:
    """2x2 out of the box, but shorter; stopped on its way, because under Ray the wish to stop goes through a file."""
    folder = tmp_path / "runs" / "a"
    line = ["--name", "a", "--log-interval", "1", "--debug-steps", "40", "--warmup-steps", "5"]
    with start(line, tmp_path) as process:
        wait_for_step(folder, 3)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert (process.returncode, err) == (128 + signal.SIGINT, "")
    assert out.splitlines()[-1].startswith("stopped; resume with: python -m tp2d_train")

    code, out, err = run(line, tmp_path)
    assert (code, err) == (0, ""), err
    assert "resumed from step-" in out
    steps = losses(folder)
    assert [line["step"] for line in steps] == list(range(1, len(steps) + 1))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["finished"] and summary["mesh"] == "2x2 (dp x tp)" and summary["step"] == len(steps) == 40
    assert steps[0]["loss"] == pytest.approx(math.log(4096), rel=0.02)
    assert summary["eval_loss"] < math.log(4096) - 1
    assert (folder / "loss.png").stat().st_size > 10_000


def test_a_killed_worker_is_one_line(tmp_path: Path) -> None:
    """Its peer fails too, and Ray prints a page on the lost process, which belongs into a file."""
    folder = tmp_path / "runs" / "a"
    with start(["--name", "a", "--log-interval", "1", "--dp-size", "1"], tmp_path) as process:
        wait_for_step(folder, 2)
        os.kill(ray_workers(process.pid)[0], signal.SIGKILL)
        out, err = process.communicate()
    assert process.returncode == 1
    assert re.match(r"error: rank [01] died without raising \(killed, out of memory, .* --name a\)\n$", err)
    assert "raylet" not in out
    assert "raylet" in (folder / "ray.log").read_text()


def ray_workers(driver: int) -> list[int]:
    """The process ids of the Ray Train workers below this driver."""
    return [pid for pid in _below(driver) if b"RayTrainWorker" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def _below(pid: int) -> list[int]:
    files = Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(word) for file in files for word in file.read_text().split()]
    return children + [below for child in children for below in _below(child)]
