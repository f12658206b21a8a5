"""Recorded steps of whole runs on a mesh of Gloo ranks: what they leave, and that they train as without."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tp2d_mesh import Mesh
from tp2d_mesh.profile import DATA, HOST, PEERS, ROWS, STEP
from tp2d_mesh.testing import run_on_mesh
from tp2d_train.config import TrainConfig
from tp2d_train.report.metrics import read_lines
from tp2d_train.runs.folder import RunFolder
from tp2d_train.setup.devices import check_snapshot, choose_device
from tp2d_train.setup.length import check
from tp2d_train.training.profile_table import RankRow, memory_line, write_table
from tp2d_train.training.worker import train_func


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """A run of 7 steps over short lines."""
    (tmp_path / "text.txt").write_text("".join(f"line {at} of the text has some words\n" for at in range(60)))
    return {
        "dataset_name": str(tmp_path / "text.txt"),
        "dataset_percentage": 100,
        "holdout_percentage": 0,
        "packing": "pad",
        "seq_length": 16,
        "batch_size_per_gpu": 2,
        "storage_path": str(tmp_path),
        "max_steps": 7,
        "log_interval": 1,
        "warmup_steps": 0,
        "device": "cpu",
    }


def train(mesh: Mesh, settings: dict[str, Any]) -> dict[str, Any]:
    return train_func(settings)


def run(settings: dict[str, Any], *, dp: int, tp: int, **changed: Any) -> tuple[dict[str, Any], RunFolder]:
    """Rank 0's summary and the folder of a run, whose name is among `changed`."""
    whole = settings | {"dp_size": dp, "tp_size": tp} | changed
    summary, *_ = run_on_mesh(train, whole, dp=dp, tp=tp, timeout=120)
    return summary, RunFolder(Path(settings["storage_path"]) / whole["name"])


def numbers(folder: RunFolder) -> list[tuple[float, float]]:
    return [(line["loss"], line["grad_norm"]) for line in read_lines(folder.metrics)[0]]


def messages(folder: RunFolder, kind: str = "data") -> list[str]:
    return [event["message"] for event in read_lines(folder.events)[0] if event["event"] == kind]


def traces(folder: RunFolder) -> dict[str, dict[str, Any]]:
    """Every rank's trace by its file's name, read as a viewer does."""
    return {path.name: json.loads(gzip.decompress(path.read_bytes())) for path in folder.profile.glob("*.json.gz")}


@pytest.mark.parametrize("engine", ["fsdp2", "autotp"])
def test_a_profile_adds_up_and_changes_no_number(settings: dict[str, Any], engine: str) -> None:
    """Shows a profiler that disturbs what it looks at, and time that is lost or counted twice."""
    _, plain = run(settings, dp=1, tp=2, name="plain", engine=engine)
    _, folder = run(settings, dp=1, tp=2, name="profiled", engine=engine, profile=True)
    assert numbers(folder) == numbers(plain) and len(numbers(plain)) == 7
    assert not plain.profile.exists()
    assert {path.name for path in folder.profile.iterdir()} == {
        *("rank-0.json.gz", "rank-1.json.gz", "table.json", "table.md")
    }
    for trace in traces(folder).values():
        named = [event["name"] for event in trace["traceEvents"]]
        assert named.count(STEP) == 3 and named.count(DATA) == 3
    table = json.loads((folder.profile / "table.json").read_text())
    assert (table["first_step"], table["steps"], table["classes"]) == (3, 3, list(ROWS))
    for rank, row in enumerate(table["ranks"]):
        total = sum(row["seconds"].values())
        assert row["rank"] == rank
        assert total == pytest.approx(row["step_seconds"], rel=1e-6)
        assert total == pytest.approx(row["wall_seconds"], rel=0.03), "by another clock than the trace's"
        assert all(row["seconds"][name] > 0 for name in ("matrix products", "optimizer", "communication, tp", HOST))
        unknown = [(one["kind"], one["calls"]) for one in row["exchanges"] if one["axis"] == "other"]
        assert unknown == [("all_reduce", 1)], "more than the vote on stopping"
        exposed = sum(row["seconds"][name] for name in ROWS if name.startswith("communication")) + row["seconds"][PEERS]
        assert row["exposed_seconds"] == pytest.approx(exposed)
    assert {one["axis"] for one in table["ranks"][0]["exchanges"]} >= {"tp", "dp"}
    (told,) = [message for message in messages(folder) if message.startswith("profile of steps 3 to 5: ")]
    assert str(folder.profile) in told and "ms a step" in told


def test_a_run_that_stops_early_leaves_what_was_recorded(settings: dict[str, Any]) -> None:
    _, folder = run(settings, dp=1, tp=1, name="four", profile=True, max_steps=4)
    table = json.loads((folder.profile / "table.json").read_text())
    assert (table["first_step"], table["steps"]) == (3, 2)
    assert list(traces(folder)) == ["rank-0.json.gz"]
    _, folder = run(settings, dp=1, tp=1, name="two", profile=True, max_steps=2)
    assert not list(folder.profile.glob("*"))
    assert messages(folder, "warning") == [
        "nothing was recorded: the run ended after 2 steps of this start, and steps 3 to 5 are recorded"
    ]


def test_a_resumed_run_records_its_own_steps_and_replaces_the_older_ones(settings: dict[str, Any]) -> None:
    """The epoch ends in the middle, with an evaluation and a save between two recorded steps."""
    settings |= {"debug_steps": 12, "holdout_percentage": 20, "num_epochs": 2}
    run(settings, dp=1, tp=2, name="run", profile=True, max_steps=9)
    summary, folder = run(settings, dp=1, tp=1, name="run", profile=True, max_steps=17)
    table = json.loads((folder.profile / "table.json").read_text())
    assert (table["first_step"], table["steps"], summary["step"]) == (12, 3, 17)
    assert list(traces(folder)) == ["rank-0.json.gz"], "the older recording's"
    assert "tokens_per_second" in summary


def test_speeds_are_measured_anew_after_the_recording(settings: dict[str, Any]) -> None:
    summary, _ = run(settings, dp=1, tp=1, name="five", profile=True, max_steps=5)
    assert "tokens_per_second" not in summary, "all steps but the first two were recorded"


def test_the_driver_refuses_a_run_too_short_to_record() -> None:
    with pytest.raises(ValueError, match=r"^profile needs a run of 5 steps, 3 to record after the first 2, .* has 4: "):
        check(TrainConfig(profile=True, max_steps=4, warmup_steps=0), rows=None)
    with pytest.raises(ValueError, match=r"^memory_snapshot needs a run of 5 steps"):
        check(TrainConfig(memory_snapshot=True, max_steps=4, warmup_steps=0), rows=None)
    assert check(TrainConfig(profile=True, max_steps=5, warmup_steps=0), rows=None) == ()
    assert check(TrainConfig(max_steps=4, warmup_steps=0), rows=None) == ()


def test_a_snapshot_of_memory_needs_gpus() -> None:
    message = "memory_snapshot records the memory of GPUs, and the workers compute on CPUs: leave it out"
    with pytest.raises(ValueError, match=message):
        choose_device(TrainConfig(memory_snapshot=True), gpus=0)
    assert choose_device(TrainConfig(memory_snapshot=True), gpus=4).type == "cuda"
    check_snapshot(TrainConfig(), device=torch.device("cpu"))


def row(rank: int, **seconds: float) -> RankRow:
    return RankRow(
        rank=rank,
        step_seconds=sum(seconds.values()),
        wall_seconds=sum(seconds.values()),
        seconds=dict.fromkeys(ROWS, 0.0) | seconds,
        exposed_seconds=0.25,
        exchanges=[{
            "axis": "tp", "kind": "all_reduce", "calls": 4, "size": 2**20,
            "running_seconds": 0.25, "exposed_seconds": 0.25, "waiting_seconds": 0.125,
        }],
    )  # fmt: skip


def test_the_table_is_read_by_people(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.profile.mkdir()
    rows = [row(0, **{"matrix products": 0.75, HOST: 0.25}), row(1, **{"matrix products": 0.25, HOST: 0.75})]
    told = write_table(folder, rows, config=TrainConfig(name="a"), first_step=3, steps=3)
    assert told.startswith("profile of steps 3 to 5: 1000.0 ms a step, matrix products 50%, host 50%; ")
    page = (folder.profile / "table.md").read_text()
    assert "| matrix products | 50.0% | 500.00 | 250.00 | 500.00 | 750.00 |" in page
    assert "| step | 100.0% | 1000.00 | 1000.00 | 1000.00 | 1000.00 |" in page
    assert "| tp all_reduce | 4 | 1.00 | 250.00 | 250.00 | 125.00 |" in page
    assert "250.00 ms, 25.0% of the step" in page and "attention" not in page


def test_the_most_memory_of_any_rank_is_told(tmp_path: Path) -> None:
    told = memory_line(RunFolder(tmp_path), [3 * 2**30, 4 * 2**30])
    assert told.startswith("memory: at most 4.00 GiB, on rank 1 (least 3.00 GiB); snapshots")
