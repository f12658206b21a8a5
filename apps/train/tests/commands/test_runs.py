"""The list of runs tells each one's state from its files."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from tp2d_ckpt.commit import Manifest, commit, create_directory
from tp2d_train.commands.runs import Row, describe, main
from tp2d_train.config import TrainConfig
from tp2d_train.runs.folder import RunFolder
from tp2d_train.runs.run import Run, find_run


def started(storage: Path, name: str, **settings: Any) -> Run:
    run = find_run(TrainConfig(name=name, storage_path=str(storage), **settings))
    run.start()
    return run


def save(folder: RunFolder) -> None:
    path = create_directory(folder.checkpoints, step=1)
    commit(path, Manifest(step=1, dp=1, tp=1, engine=None, tensors={}, files={}, versions={}))


def state(run: Run) -> str:
    return describe(run.folder).state


def test_a_run_goes_through_its_states(tmp_path: Path) -> None:
    run = started(tmp_path, "a")
    assert state(run) == "no checkpoint"
    with run.locked():
        assert state(run) == "running"
        save(run.folder)
        assert state(run) == "running"
    assert state(run) == "stopped"
    run.folder.failure.write_text("a cause")
    assert state(run) == "failed"
    os.utime(run.folder.failure, (0, 0))
    assert state(run) == "stopped", "the failure of an earlier start"
    run.folder.summary.write_text(json.dumps({"finished": True}))
    assert state(run) == "finished"


def test_a_run_of_another_machine_runs_while_its_file_is_fresh(tmp_path: Path) -> None:
    run = started(tmp_path, "a")
    holder = {"machine": "another", "host": "h", "pid": 1, "token": "t", "every": 1.0, "beat": 3}
    run.folder.holder.write_text(json.dumps(holder))
    assert state(run) == "running"
    os.utime(run.folder.holder, (time.time() - 600,) * 2)
    assert state(run) == "no checkpoint"


def test_a_process_that_was_killed_runs_no_more(tmp_path: Path) -> None:
    """It leaves its files, and the system has taken its lock."""
    run = started(tmp_path, "a")
    with run.locked():
        left = run.folder.holder.read_text()
    run.folder.holder.write_text(left)
    assert state(run) == "no checkpoint"


def test_a_row_has_what_is_known(tmp_path: Path) -> None:
    run = started(tmp_path, "a", engine="autotp", dp_size=3)
    run.folder.summary.write_text(json.dumps({"finished": False, "step": 0, "total_steps": 252}))
    losses = [{"step": 1, "loss": 8.0}, {"step": 2, "loss": 6.54321}, {"step": 3, "loss": None}]
    lines = [*losses, {"step": 3, "eval_loss": 7.0}]
    run.folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    row = describe(run.folder)
    assert row == Row(
        name="a",
        state="no checkpoint",
        step="3/252",
        loss="6.543",
        eval_loss="7.000",
        engine="autotp",
        mesh="3x2",
        model="builtin:tiny",
        changed=row.changed,
    )


def test_a_run_too_short_for_a_line_has_the_losses_of_its_summary(tmp_path: Path) -> None:
    run = started(tmp_path, "a")
    run.folder.summary.write_text(json.dumps({"finished": True, "step": 4, "final_loss": 5.0, "eval_loss": 6.0}))
    row = describe(run.folder)
    assert (row.loss, row.eval_loss, row.step) == ("5.000", "6.000", "")


def test_of_long_metrics_only_the_end_is_read(tmp_path: Path) -> None:
    run = started(tmp_path, "a")
    lines = [json.dumps({"step": step, "loss": 1.0 + step, "note": "x" * 90}) for step in range(3000)]
    run.folder.metrics.write_text("\n".join(lines) + "\n")
    assert describe(run.folder).loss == "3000."


def test_the_list_is_newest_first_and_a_damaged_run_does_not_break_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for age, name in ((300, "old"), (200, "broken"), (100, "new")):
        run = started(tmp_path, name)
        os.utime(run.folder.config, (time.time() - age,) * 2)
    broken = tmp_path / "broken" / "config.yaml"
    before = broken.stat().st_mtime
    broken.write_text("a: [")
    os.utime(broken, (before, before))
    (tmp_path / "old" / "summary.json").write_text("{")
    os.utime(tmp_path / "old" / "summary.json", (1, 1))
    assert main(["--storage-path", str(tmp_path)]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "state", "step", "loss", "eval", "loss", "engine", "mesh", "model", "changed"]
    assert [row.split()[0] for row in rows] == ["new", "broken", "old"]
    assert ["damaged" in row for row in rows] == [False, True, True]


def test_a_folder_without_runs_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--storage-path", str(tmp_path / "x")]) == 0
    assert capsys.readouterr().out == f"no runs in {tmp_path}/x; tp2d train starts one\n"


def test_a_terminal_gets_a_table_with_a_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started(tmp_path, "first")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert main(["--storage-path", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "first" in out and "no checkpoint" in out and "\x1b" in out
