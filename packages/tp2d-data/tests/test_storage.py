import os
import signal
import subprocess
import sys
import time

import pytest
from tp2d_data.storage import cache_root, hash_of, publish, withdraw, write_whole

WRITER = """
import sys, time
from pathlib import Path
from tp2d_data.storage import publish

folder, log, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])

def write(temporary):
    (temporary / "half.txt").write_text("half")
    with log.open("a") as file:
        file.write("begun\\n")
    time.sleep(seconds)
    (temporary / "whole.txt").write_text("whole")

publish(folder, write)
assert sorted(path.name for path in folder.iterdir()) == ["half.txt", "whole.txt"]
"""


def start_writer(folder, log, seconds):
    return subprocess.Popen([sys.executable, "-c", WRITER, str(folder), str(log), str(seconds)])


def wait_for(path, seconds=20):
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)


def test_concurrent_starts_write_once(tmp_path):
    """Without the lock each of the four would write (and say so in the log)."""
    writers = [start_writer(tmp_path / "folder", tmp_path / "log", 0.5) for _ in range(4)]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0, 0, 0]
    assert (tmp_path / "log").read_text() == "begun\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "folder.lock", "log"]


def test_killed_writer_leaves_nothing_finished(tmp_path):
    """Killed half-way, the folder is absent; the next writer is not blocked, writes it and removes the remains."""
    writer = start_writer(tmp_path / "folder", tmp_path / "log", 60)
    wait_for(tmp_path / "log")
    writer.send_signal(signal.SIGKILL)
    writer.wait(timeout=20)
    assert not (tmp_path / "folder").exists()
    assert len(list(tmp_path.glob("folder.tmp-*"))) == 1
    publish(tmp_path / "folder", lambda temporary: (temporary / "whole.txt").write_text("whole"))
    assert (tmp_path / "folder" / "whole.txt").read_text() == "whole"
    assert not list(tmp_path.glob("folder.tmp-*"))


def test_failed_writer_leaves_nothing(tmp_path):
    def fail(temporary):
        (temporary / "half.txt").write_text("half")
        raise ValueError("line 3 is bad")

    with pytest.raises(ValueError, match="line 3 is bad"):
        publish(tmp_path / "folder", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.lock"]


def test_host_that_was_first_wins(tmp_path):
    """On storage shared without locks the folder may appear meanwhile: it stays, and ours is thrown away."""

    def write(temporary):
        (temporary / "file").write_text("ours")
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "file").write_text("theirs")

    publish(tmp_path / "folder", write)
    assert (tmp_path / "folder" / "file").read_text() == "theirs"
    assert not list(tmp_path.glob("folder.tmp-*"))


def test_place_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match=r"cannot be made .* set TP2D_CACHE to another folder"):
        publish(tmp_path / "file" / "folder", lambda temporary: None)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_place_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="cannot be written; set TP2D_CACHE to another folder"):
        publish(tmp_path / "folder", lambda temporary: None)


def test_cache_root(tmp_path, monkeypatch):
    monkeypatch.delenv("TP2D_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "tp2d"
    monkeypatch.setenv("TP2D_CACHE", str(tmp_path / "env"))
    assert cache_root() == tmp_path / "env"
    assert cache_root(tmp_path / "given") == tmp_path / "given"


def test_a_hash_does_not_depend_on_the_order_of_keys():
    assert hash_of({"a": 1, "b": 2}) == hash_of({"b": 2, "a": 1}) != hash_of({"a": 1, "b": 3})


def test_a_file_is_written_whole(tmp_path, monkeypatch):
    """Until the rename the old file stands; a reader that has it open keeps it."""
    path = tmp_path / "notes.json"
    write_whole(path, "old")
    with path.open() as reader:
        write_whole(path, "new")
        assert reader.read() == "old"
    assert path.read_text() == "new" and [one.name for one in tmp_path.iterdir()] == ["notes.json"]


def test_withdrawn_is_gone_and_can_be_made_again(tmp_path):
    folder = publish(tmp_path / "a", lambda temporary: (temporary / "x").touch())
    withdraw(folder)
    withdraw(folder)  # another process was first
    assert not folder.exists() and [path.name for path in tmp_path.iterdir()] == ["a.lock"]
    assert publish(folder, lambda temporary: (temporary / "x").touch()).exists()
