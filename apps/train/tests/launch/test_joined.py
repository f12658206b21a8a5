"""Runs that torchrun or Slurm has started."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tp2d_train.launch_joined import find_world, first_node

from apps.train.tests.commands import SMALL, losses, write_text

SLURM = {
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "54321",
    "SLURM_JOB_NODELIST": "gpu-[07-09],login",
}


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("a", "a"),
        ("a,b", "a"),
        ("gpu-[01-04,07],cpu-1", "gpu-01"),
        ("gpu-[3,5]", "gpu-3"),
        ("rack2-gpu[10-12].site", "rack2-gpu10.site"),
    ],
)
def test_the_first_node_of_slurms_list(nodes: str, first: str) -> None:
    assert first_node(nodes) == first


def test_a_world_of_slurm_in_torchs_names() -> None:
    world = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "gpu-07", "MASTER_PORT": "34321"}
    assert find_world(SLURM) == world
    assert find_world({**SLURM, "MASTER_ADDR": "x", "MASTER_PORT": "1"}) == {
        **world,
        "MASTER_ADDR": "x",
        "MASTER_PORT": "1",
    }


def test_torchruns_world_wins_and_none_is_none() -> None:
    torchrun = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "h", "MASTER_PORT": "5"}
    assert find_world({**SLURM, **torchrun}) == torchrun
    assert find_world({"PATH": "/bin"}) is None
    assert find_world({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4"}) is None, "a batch script's own shell is no rank"


def torchrun(line: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.run(
        [*command, "-m", "tp2d_train", *line],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )


def without_workers(line: list[str]) -> list[str]:
    at = line.index("--num-workers")
    return line[:at] + line[at + 2 :]


def test_under_torchrun_it_joins(tmp_path: Path) -> None:
    """The number of ranks follows from torchrun, all ranks take rank 0's new name, and it alone talks."""
    write_text(tmp_path, lines=8)
    done = torchrun(without_workers(SMALL), tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("resume with: ") == 1
    (folder,) = (tmp_path / "runs").iterdir()
    assert [line["step"] for line in losses(folder)] == [1, 2]
    assert "2x1 (dp x tp)" in (folder / "summary.json").read_text()


def test_under_torchrun_a_mistake_is_said_once(tmp_path: Path) -> None:
    done = torchrun([*without_workers(SMALL), "--dataset-name", "./none"], tmp_path)
    assert done.returncode != 0
    assert done.stderr.count("error: dataset ./none does not exist") == 1


def test_another_number_of_ranks_is_refused(tmp_path: Path) -> None:
    done = torchrun([*SMALL], tmp_path)
    assert done.returncode != 0
    assert "2 ranks were started, and tp_size 1 x dp_size 1 = 1" in done.stderr
