import json
import os
import threading
import time

import pytest
from tp2d_data.sources import content_hashes as module
from tp2d_data.sources.content_hashes import content_hashes


@pytest.fixture
def reads(monkeypatch):
    """The names of the files that are read whole, in their order."""
    names = []
    read = module._read
    monkeypatch.setattr(module, "_read", lambda file: names.append(file.name) or read(file))
    return names


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Two files, as old as to be noted."""
    monkeypatch.setattr(module, "_FRESH_NS", 0)
    (tmp_path / "data").mkdir()
    for name in ("a", "b"):
        (tmp_path / "data" / name).write_text(name * 10)
    return [tmp_path / "data" / "a", tmp_path / "data" / "b"]


def hashes_of(tmp_path, files):
    return content_hashes(tmp_path / "data", files, tmp_path / "cache")


def test_a_second_start_reads_nothing(tmp_path, files, reads):
    first = hashes_of(tmp_path, files)
    assert [size for size, _ in first] == [10, 10] and first[0][1] != first[1][1]
    assert hashes_of(tmp_path, files) == first
    assert reads == ["a", "b"]


def test_only_what_changed_is_read_again(tmp_path, files, reads):
    first = hashes_of(tmp_path, files)
    files[1].write_text("c" * 10)
    second = hashes_of(tmp_path, files)
    assert second[0] == first[0] and second[1] != first[1]
    assert reads == ["a", "b", "b"]


def test_other_content_with_the_size_and_time_of_the_old_is_seen(tmp_path, files):
    """As a tool that keeps times leaves it: the inode's own time tells."""
    first = hashes_of(tmp_path, files)
    before = files[0].stat()
    time.sleep(0.02)  # longer than the clock of a file system takes to move on
    files[0].write_text("z" * 10)
    os.utime(files[0], ns=(before.st_atime_ns, before.st_mtime_ns))
    assert hashes_of(tmp_path, files)[0] != first[0]


def test_a_fresh_file_is_not_noted(tmp_path, reads):
    """Written again within the same tick of the clock, it would keep its size and times."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a").write_text("a")
    for _ in range(2):
        hashes_of(tmp_path, [tmp_path / "data" / "a"])
    assert reads == ["a", "a"]


def test_damaged_notes_are_made_anew(tmp_path, files, reads):
    first = hashes_of(tmp_path, files)
    (note,) = (tmp_path / "cache" / "digests").glob("*.json")
    for content in ("{", "[]", json.dumps({str(files[0]): [1]})):
        note.write_text(content)
        assert hashes_of(tmp_path, files) == first


def test_one_of_several_reads(tmp_path, files, reads):
    threads = [threading.Thread(target=hashes_of, args=(tmp_path, files)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(reads) == ["a", "b"]


def test_refuses_a_file_that_changes_or_is_gone(tmp_path, files, monkeypatch):
    monkeypatch.setattr(module, "file_digest", lambda opened, _: (files[0].write_text("more" * 10), blank())[1])
    with pytest.raises(ValueError, match="a changes while it is read; start again when it is whole"):
        hashes_of(tmp_path, files)
    files[0].unlink()
    with pytest.raises(ValueError, match=r"a cannot be read \(No such file"):
        hashes_of(tmp_path, files)


def blank():
    from hashlib import blake2b

    return blake2b()
