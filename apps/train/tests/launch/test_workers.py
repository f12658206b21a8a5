"""The process that Ray's workers are forked from, with a program of the test's own in place of Ray's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tp2d_train import TrainConfig
from tp2d_train.launch.ranks import touched_gpu
from tp2d_train.launch.workers import SHIM, RayWorkerStarter

WORKER = """
import atexit, os, sys
atexit.register(print, "left", flush=True)
imported = ["torch" in sys.modules, "ray" in sys.modules]
print(*imported, sys.argv[1:], os.environ["MARK"], os.getcwd(), os.getpgid(0) == os.getpid())
print("to stderr", file=sys.stderr)
sys.exit(int(sys.argv[1]))
"""


def work(executable: str, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Runs the worker as Ray does: by a shell's words."""
    (folder / "worker.py").write_text(WORKER)
    line = f"exec {executable} {folder / 'worker.py'} {' '.join(words)}"
    environment = {**os.environ, "MARK": "own"}
    return subprocess.run(
        ["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, timeout=240
    )


def test_a_worker_is_forked_with_the_imports_done_and_has_its_own_surroundings(tmp_path: Path) -> None:
    """No Ray is imported before the fork: its threads would not live in one. An own process group: Ray kills by it."""
    with RayWorkerStarter(TrainConfig()) as starter:
        for words in (["0", "a"], ["3", "b"]):
            done = work(starter.executable, tmp_path, *words)
            assert done.stdout.splitlines() == [f"True False {words} own {tmp_path} True", "left"]
            assert done.stderr == "to stderr\n"


@pytest.mark.parametrize("socket", ["none", "file"])
def test_where_nobody_answers_the_worker_starts_as_rays_own_do(tmp_path: Path, socket: str) -> None:
    (tmp_path / "file").touch()
    executable = f"{sys.executable} -S -E {SHIM} {tmp_path / socket}"
    done = work(executable, tmp_path, "3")
    assert done.stdout.startswith(f"False False ['3'] own {tmp_path} ") and done.returncode == 3


def test_a_process_without_a_gpu_has_touched_none() -> None:
    assert not touched_gpu()
