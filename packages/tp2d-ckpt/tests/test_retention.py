"""What is deleted, in which order, and what is left alone."""

import sys
import time
from pathlib import Path

import pytest
from tp2d_ckpt import CheckpointInfo, Manifest, list_checkpoints
from tp2d_ckpt.commit import MARK, commit, create_directory, record_files
from tp2d_ckpt.retention import delete, prune, sweep


def unfinished(root: Path, step: int) -> Path:
    path = create_directory(root, step=step)
    (path / "data").write_bytes(b"x")
    time.sleep(0.02)  # more than a tick of the file system's clock
    return path


def make(root: Path, step: int) -> CheckpointInfo:
    path = unfinished(root, step)
    files = record_files(path, ["data"])
    return commit(path, Manifest(step=step, dp=1, tp=1, engine=None, tensors={}, files=files, versions={}))


def test_the_last_n_stay_and_the_oldest_goes_first(tmp_path):
    infos = [make(tmp_path, step) for step in (10, 30, 20, 40)]
    assert prune(infos[-1], keep=2) == [infos[0].path, infos[1].path]
    assert list_checkpoints(tmp_path) == infos[2:]
    assert prune(infos[-1], keep=2) == []


def test_the_newest_and_the_protected_stay(tmp_path):
    first, second, last = (make(tmp_path, step) for step in (1, 2, 3))
    assert prune(last, keep=1, protect=[first.path]) == [second.path]
    assert list_checkpoints(tmp_path) == [first, last]


def test_what_no_save_made_stays(tmp_path):
    """Other files of the run, a checkpoint that the user renamed, a link that looks like a save."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    root = tmp_path / "root"
    renamed = make(root, 1).path.rename(root / "best")
    (root / "config.yaml").write_text("a: 1")
    (root / "step-00000001").mkdir()
    (root / "step-00000001-ABCDEF01").mkdir()
    (root / "step-00000001-0123abcd").symlink_to(elsewhere)
    before = sorted(root.iterdir())
    last = make(root, 2)
    assert sweep(last) == [] and prune(last, keep=1) == []
    assert sorted(root.iterdir()) == sorted([*before, last.path])
    assert (renamed / MARK).exists() and elsewhere.exists()


def test_leftovers_of_killed_saves_go_and_younger_ones_stay(tmp_path):
    """A directory without a mark that is younger than the newest checkpoint may be a save in progress."""
    old = [unfinished(tmp_path, 5), unfinished(tmp_path, 900)]
    last = make(tmp_path, 6)
    young = unfinished(tmp_path, 7)
    assert sweep(last) == old
    assert young.exists() and list_checkpoints(tmp_path) == [last]


def test_the_mark_goes_first(tmp_path):
    """In another order, a process killed meanwhile would leave a marked checkpoint with files missing."""
    events: list[str] = []
    sys.addaudithook(lambda event, args: events.append(str(args[0])) if event == "os.remove" else None)
    old, last = make(tmp_path, 1), make(tmp_path, 2)
    events.clear()
    prune(last, keep=1)
    assert events[0] == str(old.path / MARK)
    assert len(events) == 3  # the mark, the data, the manifest


def test_what_cannot_be_deleted_is_named_and_does_not_stop_the_run(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(UserWarning, match=r"file/step could not be deleted: .*Not a directory"):
        assert not delete(tmp_path / "file" / "step")
