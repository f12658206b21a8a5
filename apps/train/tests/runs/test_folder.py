"""The files of a run, and how one is replaced."""

import os
from pathlib import Path

import pytest
from tp2d_ckpt.commit import Manifest, commit, create_directory, list_checkpoints
from tp2d_train.runs.folder import RunFolder, replace_file

NAMES = {
    "config": "config.yaml",
    "checkpoints": "checkpoints",
    "metrics": "metrics.jsonl",
    "summary": "summary.json",
    "plot": "loss.png",
    "profile": "profile",
    "events": ".events.jsonl",
    "failure": "failure.log",
    "ray_log": "ray.log",
    "stop": ".stop",
    "lock": ".lock",
    "holder": ".holder.json",
}


def test_a_runs_files_have_the_names_that_users_and_older_runs_know(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a")
    names = [name for name in vars(RunFolder) if isinstance(getattr(RunFolder, name), property)]
    assert {name: getattr(folder, name) for name in names} == {k: tmp_path / "a" / name for k, name in NAMES.items()}
    assert not list(tmp_path.iterdir()), "naming a file makes none"


def test_the_readme_tells_every_file_of_a_run() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert all(f"| `{name}" in readme for name in NAMES.values() if not name.startswith("."))


def test_a_folder_has_a_checkpoint_where_a_save_was_committed(tmp_path: Path) -> None:
    """By the file that tp2d-ckpt looks for itself."""
    folder = RunFolder(tmp_path)
    save = create_directory(folder.checkpoints, step=3)
    assert not folder.has_checkpoint() and not list_checkpoints(folder.checkpoints)
    commit(save, Manifest(step=3, dp=1, tp=1, engine=None, tensors={}, files={}, versions={}))
    assert folder.has_checkpoint() and list_checkpoints(folder.checkpoints)


def test_a_file_is_replaced_whole_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for content in (b"a long first content", b"short"):
        replace_file(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_a_kill_before_the_move_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    replace_file(path, b"old")

    def killed(number: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    monkeypatch.undo()
    replace_file(path, b"newer")  # over what the killed one left
    assert path.read_bytes() == b"newer" and list(tmp_path.iterdir()) == [path]
