"""The protocol on a plain folder, in one process without a process group."""

import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch.distributed as dist
from tp2d_ckpt import (
    CheckpointInfo,
    Manifest,
    TensorRecord,
    checkpoint_at,
    find_latest,
    list_checkpoints,
    read_manifest,
    verify,
)
from tp2d_ckpt.commit import MANIFEST, MARK, commit, create_directory, record_files


def make(root: Path, step: int, content: bytes = b"weights") -> CheckpointInfo:
    path = create_directory(root, step=step)
    (path / "a.bin").write_bytes(content)
    (path / "b.bin").write_bytes(b"")
    return commit(path, manifest_of(path, step))


def manifest_of(path: Path, step: int) -> Manifest:
    return Manifest(
        step=step,
        dp=2,
        tp=4,
        engine="fsdp2",
        tensors={"model.w": TensorRecord(shape=(3, 2), dtype="bfloat16"), "s": TensorRecord(shape=(), dtype="int64")},
        files=record_files(path, ["a.bin", "b.bin"]),
        versions={"torch": "2.13.0"},
    )


def test_a_committed_directory_is_found_and_reads_back(tmp_path):
    info = make(tmp_path / "new" / "root", 120)
    assert not dist.is_initialized()
    assert find_latest(tmp_path / "new" / "root") == info == checkpoint_at(info.path)
    assert read_manifest(info.path) == manifest_of(info.path, 120) == verify(info.path)
    assert info.path.name.startswith("step-00000120-")
    assert not (info.path / f"{MARK}.tmp").exists()


def test_two_saves_of_one_step_never_share_a_directory(tmp_path):
    assert make(tmp_path, 5).path != make(tmp_path, 5).path


def test_the_newest_is_the_last_committed_not_the_highest_step(tmp_path):
    """A run that went back to step 100 must find what it saved after that, not the step 200 that it gave up."""
    make(tmp_path, 100), make(tmp_path, 200)
    last = make(tmp_path, 110)
    assert find_latest(tmp_path) == last
    assert [info.step for info in list_checkpoints(tmp_path)] == [100, 200, 110]


def test_nothing_there(tmp_path):
    assert find_latest(tmp_path) is None
    assert find_latest(tmp_path / "absent") is None


def test_a_save_without_a_mark_is_not_a_checkpoint(tmp_path):
    whole, unfinished = make(tmp_path, 1), make(tmp_path, 2)
    (unfinished.path / MARK).unlink()
    with warnings.catch_warnings(action="error"):  # a killed save deserves no warning
        assert find_latest(tmp_path) == whole
    with pytest.raises(ValueError, match=r"step-00000002-\w+ is not a checkpoint: it has no COMPLETE mark"):
        verify(unfinished.path)


def test_a_mark_of_another_manifest_is_refused(tmp_path):
    whole, mixed = make(tmp_path, 1), make(tmp_path, 2)
    shutil.copy(whole.path / MARK, mixed.path / MARK)
    with pytest.raises(ValueError, match=r"belongs to the manifest \w{12} and manifest.json is \w{12}"):
        checkpoint_at(mixed.path)
    with pytest.warns(UserWarning, match=mixed.path.name):
        assert find_latest(tmp_path) == whole


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff\xfe", b'{"step": "x"}'])
def test_an_unreadable_mark_is_refused(tmp_path, content):
    info = make(tmp_path, 1)
    (info.path / MARK).write_bytes(content)
    with pytest.raises(ValueError, match="its COMPLETE mark is not readable"):
        checkpoint_at(info.path)


def test_a_missing_manifest_is_refused(tmp_path):
    info = make(tmp_path, 1)
    (info.path / MANIFEST).unlink()
    with pytest.raises(ValueError, match=r"manifest.json is missing"):
        read_manifest(info.path)


def test_any_flipped_bit_is_found_by_name(tmp_path):
    info = make(tmp_path, 1, b"weights")
    whole = (info.path / "a.bin").read_bytes()
    for bit in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[bit // 8] ^= 1 << bit % 8
        (info.path / "a.bin").write_bytes(flipped)
        with pytest.raises(ValueError, match=r"a.bin has checksum \w{8}, \w{8} expected"):
            verify(info.path)


def test_truncation_and_a_missing_file_are_found_together(tmp_path):
    info = make(tmp_path, 1)
    (info.path / "a.bin").write_bytes(b"wei")
    (info.path / "b.bin").unlink()
    with pytest.raises(ValueError, match=r"a.bin has 3 bytes, 7 expected; b.bin is missing \(0 bytes expected\)"):
        verify(info.path)


def test_a_flipped_bit_in_the_manifest_is_found(tmp_path):
    info = make(tmp_path, 1)
    text = bytearray((info.path / MANIFEST).read_bytes())
    text[10] ^= 1
    (info.path / MANIFEST).write_bytes(text)
    with pytest.raises(ValueError, match="belongs to the manifest"):
        verify(info.path)


def test_a_file_that_rank_0_cannot_see_is_not_committed(tmp_path):
    """Each node has its own disk: every save would succeed, and no resume would."""
    path = create_directory(tmp_path, step=1)
    (path / "a.bin").write_bytes(b"weights"), (path / "b.bin").write_bytes(b"")
    manifest = manifest_of(path, 1)
    (path / "a.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"a.bin \(7 bytes\) was written by another rank .* all nodes share"):
        commit(path, manifest)
    assert find_latest(tmp_path) is None


def test_a_later_format_is_refused(tmp_path):
    path = create_directory(tmp_path, step=1)
    fields = json.loads('{"step": 1, "dp": 1, "tp": 1, "engine": null, "tensors": {}, "files": {}, "versions": {}}')
    with pytest.raises(ValueError, match="format is 2 and this version of tp2d-ckpt reads 1"):
        commit(path, Manifest(format=2, **fields))
