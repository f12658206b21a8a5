"""Runs that torchrun or Slurm has started."""

import subprocess
import sys
from pathlib import Path

import pytest
from tp2d_train.commands.train import main
from tp2d_train.launch.joined import find_world, first_node
from tp2d_train.runs.folder import RunFolder

from apps.train.tests.command_line import SMALL, free_port, losses, start, write_text
from apps.train.tests.holding import other_process

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


def without_workers(line: list[str]) -> list[str]:
    at = line.index("--num-workers")
    return line[:at] + line[at + 2 :]


def test_under_torchrun_it_joins(tmp_path: Path) -> None:
    """The number of ranks follows from torchrun, all ranks take rank 0's new name, and it alone talks."""
    write_text(tmp_path, lines=8)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    line = [*command, "tp2d_train", "train", *without_workers(SMALL)]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("resume with: ") == 1
    (folder,) = (tmp_path / "runs").iterdir()
    assert [line["step"] for line in losses(folder)] == [1, 2]
    assert "2x1 (dp x tp)" in (folder / "summary.json").read_text()


def test_a_mistake_is_said_once_and_every_rank_leaves_with_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ranks as torchrun starts them."""
    for name, value in {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}.items():
        monkeypatch.setenv(name, value)
    ranks = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("LOCAL_RANK", rank)
        ranks.append(start([*without_workers(SMALL), "--dataset-name", "./none"], tmp_path))
    streams = [rank.communicate(timeout=240) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [2, 2]
    assert streams[0][1].startswith("error: dataset ./none does not exist") and streams[0][1].count("\n") == 1
    assert streams[1] == ("", "")


def test_another_number_of_ranks_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is joined: the other rank does not exist here."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(SMALL) == 2
    assert "2 ranks were started, and tp_size 1 x dp_size 1 = 1" in capsys.readouterr().err


def test_a_run_that_another_process_trains_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the ranks that torchrun has started too: here the only one of a world."""
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path, lines=8)
    world = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    for name, value in {**world, "MASTER_PORT": str(free_port())}.items():
        monkeypatch.setenv(name, value)
    folder = RunFolder(tmp_path / "runs" / "a")
    with other_process(folder) as other:
        assert main([*SMALL, "--name", "a"]) == 2
        message = f"error: run 'a' is being trained by process {other.pid} on "
        assert capsys.readouterr().err.startswith(message) and not folder.config.exists()
