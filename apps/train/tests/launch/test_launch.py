"""Runs from the command line to the last line on local processes: endings, exit codes, and what is left."""

import os
import signal
from pathlib import Path

import pytest
from tp2d_train import TrainConfig, train
from tp2d_train.cli import main
from tp2d_train.options import read_options

from apps.train.tests.commands import SMALL, losses, run, start, wait_for_step, worker_processes, write_text


def test_a_run_leaves_its_files_and_goes_on_when_it_is_prolonged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Once through the function, once through the command, whose files are the same."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    write_text(tmp_path, lines=12)
    result = train(TrainConfig(name="a", **read_options(SMALL)))
    assert result.path == tmp_path / "runs" / "a"
    assert result.summary["finished"] and result.summary["step"] == 6
    left = {"checkpoints", "config.yaml", "metrics.jsonl", "summary.json", "loss.png"}
    assert left <= {path.name for path in result.path.iterdir()}
    assert [line["step"] for line in losses(result.path)] == [1, 2, 3, 4, 5, 6]
    out, err = capfd.readouterr()
    assert "resume with: " in out and "--name a" in out and err == ""

    assert main([*SMALL, "--name", "a"]) == 0
    out, _ = capfd.readouterr()
    assert "run 'a' is finished: step 6 of num_epochs 1" in out and "--num-epochs goes on" in out

    code, out, err = run([*SMALL, "--name", "a", "--num-epochs", "2"], tmp_path)
    assert (code, err) == (0, "")
    assert "resuming" in out and "the schedule now ends at step 12, it ended at 6" in out
    assert [line["step"] for line in losses(result.path)] == list(range(1, 13))


def test_a_signal_saves_and_leaves_with_the_command_that_resumes(tmp_path: Path) -> None:
    write_text(tmp_path, lines=2000)
    folder = tmp_path / "runs" / "a"
    with start([*SMALL, "--name", "a"], tmp_path) as process:
        wait_for_step(folder, 3)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate()
    assert (process.returncode, err) == (128 + signal.SIGTERM, "")
    assert out.splitlines()[-1].startswith("stopped; resume with: python -m tp2d_train")
    last = losses(folder)[-1]["step"]
    assert 3 <= last < 1000
    assert [path.name.startswith(f"step-{last:08d}") for path in (folder / "checkpoints").iterdir()] == [True]


def test_a_killed_worker_is_started_again_and_named_when_that_does_not_help(tmp_path: Path) -> None:
    """The surviving rank fails too, because of the lost one; it is the lost one that is named."""
    write_text(tmp_path, lines=2000)
    folder = tmp_path / "runs" / "a"
    line = [*SMALL, "--name", "a", "--num-workers", "2", "--max-failures", "1", "--save-interval-steps", "2"]
    with start(line, tmp_path) as process:
        wait_for_step(folder, 3)
        first = worker_processes(process.pid)
        os.kill(first[1], signal.SIGKILL)
        wait_for_step(folder, losses(folder)[-1]["step"] + 3)
        second = worker_processes(process.pid)
        os.kill(second[1], signal.SIGKILL)
        out, err = process.communicate()
    assert process.returncode == 1
    assert not set(first) & set(second)
    assert "rank 1 was ended by signal 9; starting again, 1 of 1 times" in out
    assert "resumed from step-" in out
    steps = [line["step"] for line in losses(folder)]
    assert steps == list(range(1, len(steps) + 1))
    assert err.startswith("error: rank 1 was ended by signal 9 (details: ") and err.count("\n") == 1


def test_a_workers_error_is_one_line_with_rank_and_cause(tmp_path: Path) -> None:
    """Too few rows for a batch is known only when the text is tokenised, so a worker finds it."""
    write_text(tmp_path, lines=1)
    code, out, err = run([*SMALL, "--name", "a"], tmp_path)
    assert code == 1
    assert err.startswith("error: rank 0 on ") and "text.txt" in err and err.count("\n") == 1
    log = tmp_path / "runs" / "a" / "failure.log"
    assert str(log) in err and "Traceback" in log.read_text() and "Traceback" not in out
