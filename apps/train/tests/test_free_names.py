"""A name without a checkpoint is free for new settings, and one with something to protect is not (`runs`)."""

from pathlib import Path

import pytest
from tp2d_ckpt.commit import create_directory
from tp2d_train.config import TrainConfig
from tp2d_train.options import read_yaml
from tp2d_train.runs.folder import RunFolder
from tp2d_train.runs.run import Run, find_run

from apps.train.tests.named import config, finish, save, started


def left_behind(run: Run) -> list[Path]:
    """Every file that a start can leave before its first save, and a save that was killed."""
    folder = run.folder
    files = [folder.metrics, folder.summary, folder.plot, folder.events, folder.failure, folder.ray_log, folder.stop]
    files.append(run.path / "checkpoint_manager_snapshot.json")
    for file in files:
        file.write_text("{}")
    return [*files, create_directory(folder.checkpoints, step=2), folder.checkpoints]


def test_a_name_without_a_checkpoint_is_free(tmp_path: Path) -> None:
    """Other settings take it over, and of the first start nothing is left but what somebody else has put there."""
    first = started(tmp_path, name="a")
    files = left_behind(first)
    notes = first.path / "notes.txt"
    notes.touch()
    run = find_run(config(tmp_path, name="a", seed=1, seq_length=32))
    assert run.previous is None and all(file.exists() for file in files), "looking for a run changes nothing"
    with run.locked():
        run.start()
        assert not [file for file in files if file.exists()]
    assert {path.name for path in run.path.iterdir()} == {"config.yaml", "notes.txt", ".lock"}
    assert TrainConfig(**read_yaml(run.folder.config)) == run.config


def test_a_start_that_was_killed_before_its_configuration_leaves_the_name_free(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a")
    folder.path.mkdir()
    for name in (".lock", ".holder.json", ".config.yaml.tmp"):
        (folder.path / name).touch()
    assert find_run(config(tmp_path, name="a")).previous is None


def test_a_run_that_saves_while_another_start_checks_is_not_taken_over(tmp_path: Path) -> None:
    first = started(tmp_path, name="a")
    second = find_run(config(tmp_path, name="a", seed=1))
    save(first)
    files = left_behind(first)
    with pytest.raises(ValueError, match="run 'a' was started by somebody else meanwhile"):
        second.start()
    assert all(file.exists() for file in files) and TrainConfig(**read_yaml(first.folder.config)) == first.config


def test_a_finished_run_without_checkpoints_is_not_taken_over(tmp_path: Path) -> None:
    """Somebody has removed them to save space; its metrics are of use."""
    finish(started(tmp_path, name="a"), epoch=1, step=20)
    assert find_run(config(tmp_path, name="a")).finished
    with pytest.raises(ValueError, match=r"seed 42 -> 1"):
        find_run(config(tmp_path, name="a", seed=1))
