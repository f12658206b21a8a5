"""Runs from the command line to the last line on local processes: endings, exit codes, and what is left."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tp2d_train import TrainConfig, train
from tp2d_train.commands.train import main
from tp2d_train.options import read_options, read_yaml
from tp2d_train.runs.run import Run

from apps.train.tests.command_line import (
    SMALL,
    free_port,
    losses,
    processes_below,
    run_while,
    start,
    wait_for_step,
    write_text,
)
from apps.train.tests.holding import other_process


def test_a_run_leaves_its_files_and_goes_on_when_it_is_prolonged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Once through the function on a process of its own, once through the command as torchrun's only rank."""
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path, lines=6)
    result = train(TrainConfig(name="a", **read_options(SMALL)))
    assert result.path == tmp_path / "runs" / "a"
    assert result.summary["finished"] and result.summary["step"] == 3
    left = {"checkpoints", "config.yaml", "metrics.jsonl", "summary.json", "loss.png"}
    assert left <= {path.name for path in result.path.iterdir()}
    assert [line["step"] for line in losses(result.path)] == [1, 2, 3]
    out, err = capfd.readouterr()
    assert "\nresume with: tp2d resume a\n" in out and err == ""
    assert out.startswith("checking the model and the data\n") and f"\nrun {result.path}\n" in out

    assert main([*SMALL, "--name", "a"]) == 0
    out, _ = capfd.readouterr()
    assert "run 'a' is finished: step 3 of num_epochs 1" in out and "--num-epochs goes on" in out

    world = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    for name, value in {**world, "MASTER_PORT": str(free_port())}.items():
        monkeypatch.setenv(name, value)
    assert main([*SMALL, "--name", "a", "--num-epochs", "2"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert "resuming" in out and "the schedule now ends at step 6, it ended at 3" in out
    assert [line["step"] for line in losses(result.path)] == [1, 2, 3, 4, 5, 6]


TWO = [*SMALL, "--name", "a", "--num-workers", "2"]


def ranks_of(driver: int) -> list[int]:
    """The ranks alone, without the process that they are forked from."""
    return processes_below(driver, command=b"launch.ranks")[1:]


def test_a_killed_worker_is_started_again_and_a_signal_saves_and_leaves(tmp_path: Path) -> None:
    """The surviving rank fails too, because of the lost one; it is the lost one that is named."""
    write_text(tmp_path, lines=2000)
    folder = tmp_path / "runs" / "a"
    with start([*TWO, "--max-failures", "1", "--save-interval-steps", "2"], tmp_path) as process:
        wait_for_step(folder, 3, running=lambda: process.poll() is None)
        first = ranks_of(process.pid)
        os.kill(first[1], signal.SIGKILL)
        wait_for_step(folder, losses(folder)[-1]["step"] + 3, running=lambda: process.poll() is None)
        second = ranks_of(process.pid)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate()
    assert (process.returncode, err) == (128 + signal.SIGTERM, "")
    assert len(first) == len(second) == 2 and not set(first) & set(second)
    assert "rank 1 was ended by signal 9; starting again, 1 of 1 times" in out
    assert "resumed from step-" in out
    assert out.splitlines()[-1].startswith("stopped; resume with: tp2d resume a")
    steps = [line["step"] for line in losses(folder)]
    assert steps == list(range(1, len(steps) + 1)) and 6 <= len(steps) < 500
    assert any(path.name.startswith(f"step-{steps[-1]:08d}") for path in (folder / "checkpoints").iterdir())


def test_a_killed_worker_that_may_not_be_started_again_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Killed while it starts: its peer waits for it and is ended, of which torch writes lines of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tp2d_train.launch.local.GRACE_SECONDS", 0.5)
    write_text(tmp_path, lines=8)

    def kill_one(running: Callable[[], bool]) -> None:
        while len(ranks_of(os.getpid())) < 2 and running():
            time.sleep(0.05)
        os.kill(ranks_of(os.getpid())[1], signal.SIGKILL)

    assert run_while(TWO, kill_one) == 1
    _, err = capfd.readouterr()
    assert err.startswith("error: rank 1 was ended by signal 9 (details: ") and err.count("\n") == 1


def test_a_workers_error_is_one_line_with_rank_and_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A stream is read while it trains, so a worker finds a line that is none."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.jsonl").write_text('{"text": "a line"}\n{"text": \n')
    assert main([*SMALL, "--name", "a", "--dataset-name", "text.jsonl", "--streaming", "--max-steps", "1"]) == 1
    out, err = capfd.readouterr()
    assert err.startswith("error: rank 0 on ") and "text.jsonl" in err and err.count("\n") == 1
    log = tmp_path / "runs" / "a" / "failure.log"
    assert str(log) in err and "Traceback" in log.read_text() and "Traceback" not in out
    assert err.endswith("; nothing was saved, start again with: tp2d train --config runs/a/config.yaml)\n")

    (tmp_path / "text.jsonl").write_text('{"text": "a line"}\n' * 4)
    assert main([*SMALL, "--name", "a", "--dataset-name", "text.jsonl"]) == 0
    assert not log.exists() and [line["step"] for line in losses(log.parent)] == [1, 2], "the name was free"


def test_a_run_that_another_process_trains_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It has not saved yet, and its name is not free all the same."""
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path, lines=8)
    run = Run(config=TrainConfig(name="a", storage_path="runs"))
    run.start()
    run.folder.metrics.touch()
    with other_process(run.folder) as other:
        assert main([*SMALL, "--name", "a"]) == 2
        assert f"run 'a' is being trained by process {other.pid} on " in capfd.readouterr().err
    assert run.folder.metrics.exists() and TrainConfig(**read_yaml(run.folder.config)) == run.config
