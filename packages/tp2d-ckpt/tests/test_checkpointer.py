"""A run saved and loaded by real processes: complete, or refused by name, with the same error on every rank."""

import random
import resource
import time
from pathlib import Path

import pytest
import torch
from tp2d_ckpt import (
    Checkpointer,
    CheckpointError,
    capture_rng,
    find_latest,
    list_checkpoints,
    read_manifest,
    restore_rng,
    verify,
)
from tp2d_mesh import Layout, NamedTensor, Piece, build_mesh, local_boxes
from tp2d_mesh.testing import run_on_mesh

SHAPE = (9, 10)


def tensors_of(mesh, step, rows=9):
    """One matrix split over tp and dp; its elements are `step` times 0, 1, 2, ..."""
    shape = (rows, 10)
    full = step * torch.arange(10.0 * rows).reshape(shape)
    boxes = local_boxes(shape, layout=mesh.layout, rank=mesh.rank, tp_dim=1)
    pieces = [
        Piece(offsets=b.offsets, tensor=full[b.offsets[0] :, b.offsets[1] :][: b.shape[0], : b.shape[1]].clone())
        for b in boxes
    ]
    return {"model.w": NamedTensor(name="model.w", global_shape=shape, pieces=tuple(pieces))}


def save(mesh, root, steps, keep=None):
    checkpointer = Checkpointer(root, mesh=mesh, keep=keep, engine="fsdp2")
    state = {"data": {"epoch": 1}, "loss": 0.1, "none": None}
    for step in steps:
        own = {"rng": capture_rng(mesh.device), "rank": mesh.rank}
        info = checkpointer.save(step=step, tensors=tensors_of(mesh, step), state=state, rank_state=own)
    return info, random.random()


def restore(mesh, root):
    random.seed("another state than the one that was saved")
    checkpointer = Checkpointer(root, mesh=mesh)
    info = checkpointer.latest()
    tensors = tensors_of(mesh, 0)
    restored = checkpointer.load(info, tensors)
    same = [
        torch.equal(piece.tensor, want.tensor)
        for piece, want in zip(tensors["model.w"].pieces, tensors_of(mesh, info.step)["model.w"].pieces, strict=True)
    ]
    own = restored.rank_state
    if own:
        restore_rng(own["rng"], mesh.device)
    return info, all(same), restored.state, own and own["rank"], random.random()


def error_of(mesh, call):
    """The error of `call(mesh)`: its class, its text, and whether it came within 20 s; None without an error."""
    started = time.monotonic()
    try:
        call(mesh)
    except (ValueError, CheckpointError) as error:
        return type(error).__name__, str(error), time.monotonic() - started < 20
    return None


@pytest.fixture
def alone():
    mesh = build_mesh(Layout(dp=1, tp=1), device=torch.device("cpu"))
    yield mesh
    mesh.close()


def test_the_same_mesh_gets_everything_back(tmp_path):
    saved = run_on_mesh(save, tmp_path, [3, 5], dp=2, tp=2)
    found = run_on_mesh(restore, tmp_path, dp=2, tp=2)
    for rank, (info, same, state, own, drawn) in enumerate(found):
        assert info == saved[rank][0] == find_latest(tmp_path) and info.step == 5
        assert same and state == {"data": {"epoch": 1}, "loss": 0.1, "none": None} and own == rank
        assert drawn == saved[rank][1], "the random state did not come back"
    manifest = verify(info.path)
    assert (manifest.step, manifest.dp, manifest.tp, manifest.engine) == (5, 2, 2, "fsdp2")
    assert manifest.tensors["model.w"].shape == SHAPE and set(manifest.versions) >= {"torch", "tp2d-ckpt"}
    on_disk = {file.name for file in info.path.iterdir()} - {"COMPLETE", "manifest.json"}
    assert set(manifest.files) == on_disk, "a file without a checksum"


@pytest.mark.parametrize(("dp", "tp"), [(4, 1), (1, 4), (1, 1)])
def test_another_mesh_gets_the_tensors_and_no_random_state(tmp_path, dp, tp):
    """A mesh of 4 ranks as well: rank 1 of 2x2 has the rows and random state of rank 0, and rank 1 of 4x1 must not."""
    run_on_mesh(save, tmp_path, [5], dp=2, tp=2)
    for info, same, _, own, _ in run_on_mesh(restore, tmp_path, dp=dp, tp=tp):
        assert info.step == 5 and same and own is None


def test_only_the_last_ones_are_kept(tmp_path):
    run_on_mesh(save, tmp_path, [1, 2, 3, 4], keep=2, dp=2, tp=1)
    assert [info.step for info in list_checkpoints(tmp_path)] == [3, 4]
    assert len(list(tmp_path.iterdir())) == 2


def test_a_new_run_finds_nothing(alone, tmp_path):
    assert Checkpointer(tmp_path / "new", mesh=alone).latest() is None


def damaged_load(mesh, root):
    checkpointer = Checkpointer(root, mesh=mesh)
    tensors = tensors_of(mesh, 0)
    found = error_of(mesh, lambda mesh: checkpointer.load(checkpointer.latest(), tensors))
    assert not any(piece.tensor.any() for piece in tensors["model.w"].pieces), "touched"
    return found


def test_damage_is_named_with_the_way_out(tmp_path):
    """Newest first: a flipped bit, a truncated file, a whole one. The message must not offer the second."""
    run_on_mesh(save, tmp_path, [1, 2, 3], dp=2, tp=1)
    whole, truncated, flipped = (info.path for info in list_checkpoints(tmp_path))
    content = bytearray((flipped / "__1_0.distcp").read_bytes())
    content[len(content) // 2] ^= 1
    (flipped / "__1_0.distcp").write_bytes(content)
    (truncated / "rank-00001.pt").write_bytes(b"short")
    found = run_on_mesh(damaged_load, tmp_path, dp=2, tp=1)
    assert found == [found[0]] * 2 and found[0][0] == "ValueError"
    message = found[0][1]
    assert f"the checkpoint {flipped} is damaged: __1_0.distcp has checksum" in message
    assert f"The newest older one that is whole is {whole}: delete the damaged one to resume from it" in message


def test_damage_without_a_way_out(alone, tmp_path):
    """DCP's metadata is a pickle: a damaged one must be refused before it is opened."""
    save(alone, tmp_path, [1])
    (find_latest(tmp_path).path / ".metadata").write_bytes(b"not what was saved")
    with pytest.raises(ValueError, match=r"\.metadata has 18 bytes, \d+ expected\. No older checkpoint .* is whole"):
        Checkpointer(tmp_path, mesh=alone).load(find_latest(tmp_path), tensors_of(alone, 0))


def test_every_file_is_checked(alone, tmp_path):
    save(alone, tmp_path, [1])
    info = find_latest(tmp_path)
    for name in read_manifest(info.path).files:
        content = (info.path / name).read_bytes()
        (info.path / name).write_bytes(content[:-1] + bytes([content[-1] ^ 128]))
        with pytest.raises(ValueError, match=f"damaged: {name} has checksum"):
            Checkpointer(tmp_path, mesh=alone).load(info, tensors_of(alone, 0))
        (info.path / name).write_bytes(content)
    Checkpointer(tmp_path, mesh=alone).load(info, tensors_of(alone, 0))


def save_with_a_full_disk(mesh, root, limit, rows, own):
    """Save step 2 while no file of rank 1 may grow beyond `limit` bytes, which the kernel enforces."""
    checkpointer = Checkpointer(root, mesh=mesh)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    if mesh.rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    tensors = tensors_of(mesh, 2, rows=rows)
    try:
        return error_of(
            mesh, lambda mesh: checkpointer.save(step=2, tensors=tensors, state={}, rank_state={"x": torch.zeros(own)})
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("rows", "own"), [(1000, 1), (9, 10_000)], ids=["while DCP writes tensors", "while a rank writes its own state"]
)
def test_a_full_disk_on_one_rank_fails_on_all_and_loses_nothing(tmp_path, rows, own):
    run_on_mesh(save, tmp_path, [1], dp=2, tp=1)
    found = run_on_mesh(save_with_a_full_disk, tmp_path, 15_000, rows, own, dp=2, tp=1)
    assert found == [found[0]] * 2
    kind, message, quick = found[0]
    assert kind == "CheckpointError" and quick
    assert "failed on rank 1" in message and "File too large" in message
    assert find_latest(tmp_path).step == 1 and len(list(tmp_path.iterdir())) == 1, "the failed save fills the disk"
    assert run_on_mesh(restore, tmp_path, dp=2, tp=1)[0][1]


def test_a_root_that_is_a_file(tmp_path):
    (tmp_path / "root").write_text("")
    found = run_on_mesh(save_or_tell, tmp_path / "root", dp=2, tp=1)
    assert found == [found[0]] * 2
    assert "saving step 1 failed on rank 0: " in found[0][1] and "root" in found[0][1]


def save_or_tell(mesh, root):
    return error_of(mesh, lambda mesh: save(mesh, root, [1]))


def save_unequal_state(mesh, root):
    checkpointer = Checkpointer(root, mesh=mesh)
    return error_of(
        mesh,
        lambda mesh: checkpointer.save(step=1, tensors=tensors_of(mesh, 1), state={"r": mesh.rank}, rank_state={}),
    )


def test_state_must_be_equal_on_all_ranks(tmp_path):
    found = run_on_mesh(save_unequal_state, tmp_path, dp=2, tp=1)
    assert found[0] == found[1] and found[0][0] == "ValueError"
    assert found[0][1] == "`state` differs between rank 0 and rank 1: pass what belongs to one rank as `rank_state`."
    assert find_latest(tmp_path) is None and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("state", "own", "message"),
    [
        ({"x": torch.zeros(1)}, {}, "`state` is not JSON: Object of type Tensor is not JSON serializable"),
        ({}, {"x": Path("/")}, "`rank_state` holds more than numbers, strings, lists, dicts, tensors"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(alone, tmp_path, state, own, message):
    with pytest.raises(ValueError, match=message):
        Checkpointer(tmp_path, mesh=alone).save(step=1, tensors=tensors_of(alone, 1), state=state, rank_state=own)
    assert not list(tmp_path.iterdir())


def test_keep_0_is_refused(alone, tmp_path):
    with pytest.raises(ValueError, match="keep=0 would delete the checkpoint just written"):
        Checkpointer(tmp_path, mesh=alone, keep=0)
