"""Writing a file at once or not at all."""

import os

import pytest
from tp2d_ckpt.files import sync_file, write_atomically, write_synced


def test_the_new_content_takes_the_place_of_the_old_and_nothing_is_left_beside_it(tmp_path):
    write_atomically(tmp_path / "mark", b"one")
    write_atomically(tmp_path / "mark", b"two")
    assert [file.name for file in tmp_path.iterdir()] == ["mark"]
    assert (tmp_path / "mark").read_bytes() == b"two"


def test_a_write_that_fails_leaves_the_old_content(tmp_path, monkeypatch):
    """Would show a write in place: a full disk or a kill would then leave half a file under the final name."""
    write_atomically(tmp_path / "mark", b"one")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "mark", b"two")
    assert (tmp_path / "mark").read_bytes() == b"one"


def test_every_write_reaches_the_disk_before_it_returns(tmp_path, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(os.fstat(descriptor).st_ino), fsync(descriptor)))
    write_synced(tmp_path / "a", b"x")
    sync_file(tmp_path / "a")
    assert synced == [(tmp_path / "a").stat().st_ino] * 2
    synced.clear()
    write_atomically(tmp_path / "b", b"x")
    assert synced == [(tmp_path / "b").stat().st_ino, tmp_path.stat().st_ino], "the name is on the disk last"
