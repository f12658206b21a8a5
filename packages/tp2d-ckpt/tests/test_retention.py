"""What is deleted, in which order, and what is left alone."""

import os
import sys
import time
from pathlib import Path

import pytest
from tp2d_ckpt import CheckpointInfo, Manifest, find_latest, keep_aside, list_checkpoints, verify
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


def test_a_checkpoint_kept_aside_outlives_every_rotation(tmp_path):
    """Shows a second name that rotation counts or deletes, or that shares the fate of the first."""
    first = make(tmp_path, 1)
    kept = keep_aside(first)
    assert kept.path.name == f"{first.path.name}-kept" and kept.is_kept and not first.is_kept
    assert (kept.step, kept.sequence) == (first.step, first.sequence)
    assert (kept.path / "data").samefile(first.path / "data")
    assert keep_aside(first) == kept and keep_aside(kept) == kept
    later = [make(tmp_path, step) for step in (2, 3, 4)]
    assert prune(later[-1], keep=2) == [first.path, later[0].path]
    assert sweep(later[-1]) == []
    assert list_checkpoints(tmp_path) == [kept, *later[1:]]
    verify(kept.path)


def test_a_kept_checkpoint_is_what_is_left_where_the_others_are_gone(tmp_path):
    first, second = make(tmp_path, 1), make(tmp_path, 2)
    kept = keep_aside(first)
    assert find_latest(tmp_path) == second
    delete(first.path), delete(second.path)
    assert find_latest(tmp_path) == kept


def test_keeping_aside_begins_anew_after_a_kill(tmp_path):
    """Without its mark the second name is no checkpoint: it may have files missing."""
    first = make(tmp_path, 1)
    half = first.path.with_name(f"{first.path.name}-kept")
    half.mkdir()
    (half / "data").write_bytes(b"half")
    assert list_checkpoints(tmp_path) == [first]
    verify(keep_aside(first).path)
    assert (half / "data").read_bytes() == b"x"


def test_a_file_system_without_links_gets_a_copy(tmp_path, monkeypatch):
    first = make(tmp_path, 1)
    monkeypatch.setattr(os, "link", refuse_to_link)
    kept = keep_aside(first)
    assert not (kept.path / "data").samefile(first.path / "data")
    verify(kept.path)


def refuse_to_link(source, target):
    raise OSError(95, "Operation not supported")
