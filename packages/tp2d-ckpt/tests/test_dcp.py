"""Boxes through real DCP: every mesh loads bit for bit what every other saved; what does not fit changes nothing."""

import itertools
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.planner import SavePlan
from tp2d_ckpt import TensorRecord
from tp2d_ckpt.dcp import _write_item, load_tensors, save_tensors, spread
from tp2d_mesh import Layout, NamedTensor, Piece, build_mesh, local_boxes
from tp2d_mesh.testing import MeshError, run_on_mesh

# name: shape, tp dim, dtype, blocks. Odd sizes, so that pieces differ in size and some ranks hold none.
SPECS = {
    "model.columns": ((13, 7), 1, torch.float32, 1),
    "model.rows": ((11, 5), 0, torch.bfloat16, 1),
    "model.packed": ((12, 3), 0, torch.float32, 2),
    "model.norm": ((3,), None, torch.float64, 1),
    "model.cube": ((4, 3, 5), 2, torch.float16, 1),
    "model.ids": ((5,), None, torch.int64, 1),
    "optim.step": ((), None, torch.float32, 1),
}
MESHES = [(2, 2), (4, 1), (1, 4), (1, 1)]


def whole(name):
    shape, _, dtype, _ = SPECS[name]
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    return (torch.rand(shape, generator=generator, dtype=torch.float64) * 200 - 100).to(dtype)


def tensors_of(mesh, *, filled):
    """This rank's part of every tensor, cut as tensor parallelism and FSDP2 cut it; zeros unless `filled`."""
    found = {}
    for name, (shape, tp_dim, dtype, blocks) in SPECS.items():
        full = whole(name) if filled else torch.zeros(shape, dtype=dtype)
        boxes = local_boxes(shape, layout=mesh.layout, rank=mesh.rank, tp_dim=tp_dim, blocks=blocks)
        pieces = [Piece(offsets=box.offsets, tensor=cut(full, box.offsets, box.shape)) for box in boxes]
        found[name] = NamedTensor(name=name, global_shape=shape, pieces=tuple(pieces))
    return found


def cut(full, offsets, shape):
    """A box of `full` as a view into a larger storage, as engines hold their parts."""
    box = full[tuple(slice(o, o + s) for o, s in zip(offsets, shape, strict=True))]
    return torch.stack([box, box])[1]


def save(mesh, path):
    return save_tensors(path, tensors_of(mesh, filled=True), group=mesh.world_group)


def load(mesh, path):
    found, wanted = tensors_of(mesh, filled=False), tensors_of(mesh, filled=True)
    load_tensors(path, found, group=mesh.world_group)
    for name in SPECS:
        for piece, want in zip(found[name].pieces, wanted[name].pieces, strict=True):
            assert torch.equal(piece.tensor, want.tensor), (name, piece.offsets)
    return sum(piece.tensor.numel() for tensor in found.values() for piece in tensor.pieces)


def load_or_tell(mesh, path, changes):
    """Load with some tensors changed: the error's text, and a check that no piece was changed."""
    found = {**tensors_of(mesh, filled=False), **changes}
    try:
        load_tensors(path, found, group=mesh.world_group)
    except ValueError as error:
        assert all(not p.tensor.any() for tensor in found.values() for p in tensor.pieces), "touched"
        return str(error)
    return None


def save_or_tell(mesh, path, by_rank):
    try:
        save_tensors(path, by_rank[mesh.rank], group=mesh.world_group)
    except ValueError as error:
        return str(error)
    return None


def of(name, tensor):
    """A whole tensor as the only piece of itself."""
    pieces = (Piece(offsets=(0,) * tensor.dim(), tensor=tensor),)
    return {name: NamedTensor(name=name, global_shape=tuple(tensor.shape), pieces=pieces)}


def vector(size, *pieces, dtype=torch.float32):
    """The tensor `w` of `size` elements, with pieces given as (offset, length)."""
    boxes = tuple(Piece(offsets=(start,), tensor=torch.zeros(length, dtype=dtype)) for start, length in pieces)
    return {"w": NamedTensor(name="w", global_shape=(size,), pieces=boxes)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("saved")
    records = run_on_mesh(save, path, dp=2, tp=2)
    expected = {name: TensorRecord(shape=shape, dtype=str(dtype)[6:]) for name, (shape, _, dtype, _) in SPECS.items()}
    assert records == [expected] * 4
    return path


@pytest.fixture(scope="module")
def alone():
    """A 1x1 mesh in this process."""
    mesh = build_mesh(Layout(dp=1, tp=1), device=torch.device("cpu"))
    yield mesh
    mesh.close()


@pytest.mark.parametrize(("dp", "tp"), MESHES)
def test_what_2x2_saved_every_mesh_loads(saved, dp, tp):
    counts = run_on_mesh(load, saved, dp=dp, tp=tp)
    assert all(counts), "a rank had nothing to compare"


@pytest.mark.parametrize(("dp", "tp"), MESHES[1:])
def test_what_other_meshes_saved_2x2_loads(tmp_path, dp, tp):
    run_on_mesh(save, tmp_path, dp=dp, tp=tp)
    run_on_mesh(load, tmp_path, dp=2, tp=2)


def test_every_element_is_written_once(saved):
    """Replicas hold equal boxes: if each wrote its own, a checkpoint would be tp or dp times too large."""
    metadata = pickle.loads((saved / ".metadata").read_bytes())
    for name, (shape, *_) in SPECS.items():
        chunks = metadata.state_dict_metadata[name].chunks
        assert sum(torch.Size(chunk.sizes).numel() for chunk in chunks) == torch.Size(shape).numel()
    assert len(list(saved.glob("__*.distcp"))) == 4


def test_torch_s_own_tools_read_it(saved, tmp_path):
    dcp_to_torch_save(saved, tmp_path / "all.pt")
    found = torch.load(tmp_path / "all.pt", weights_only=True)
    assert set(found) == set(SPECS)
    assert all(torch.equal(found[name], whole(name)) for name in SPECS)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_cut_loads_into_any_other(data, alone, tmp_path_factory):
    """Random grids of boxes, empty ones among them, saved as pieces of one rank and loaded into another grid."""
    shape = tuple(data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3)))
    full = torch.arange(torch.Size(shape).numel()).reshape(shape)
    path = tmp_path_factory.mktemp("grid")
    save_tensors(path, grid(full, data), group=alone.world_group)
    found = grid(torch.zeros_like(full), data)
    load_tensors(path, found, group=alone.world_group)
    for piece in found["t"].pieces:
        index = tuple(slice(o, o + s) for o, s in zip(piece.offsets, piece.tensor.shape, strict=True))
        assert torch.equal(piece.tensor, full[index])


def grid(full, data):
    """`full` cut by random planes; planes may coincide, which gives empty boxes."""
    boxes = [((), ())]
    for size in full.shape:
        cuts = sorted([0, size, *data.draw(st.lists(st.integers(0, size), max_size=2))])
        boxes = [((*o, a), (*s, b - a)) for o, s in boxes for a, b in itertools.pairwise(cuts)]
    pieces = []
    for offsets, shape in boxes:
        index = tuple(slice(o, o + s) for o, s in zip(offsets, shape, strict=True))
        pieces.append(Piece(offsets=offsets, tensor=full[index].clone()))
    return {"t": NamedTensor(name="t", global_shape=tuple(full.shape), pieces=tuple(pieces))}


def test_empty_tensors_and_strided_views(alone, tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {**of("e", torch.zeros(0, 4)), **of("t", base.t())}
    save_tensors(tmp_path, tensors, group=alone.world_group)
    base.zero_()
    load_tensors(tmp_path, tensors, group=alone.world_group)
    assert torch.equal(base, torch.arange(12.0).reshape(3, 4))


def test_a_parameter_that_needs_grad_is_filled_in_place(alone, tmp_path):
    weight = torch.nn.Parameter(torch.ones(2, 2))
    tensors = of("w", weight)
    save_tensors(tmp_path, tensors, group=alone.world_group)
    with torch.no_grad():
        weight.zero_()
    load_tensors(tmp_path, tensors, group=alone.world_group)
    assert torch.equal(weight, torch.ones(2, 2)) and weight.requires_grad


def test_a_part_of_the_tensors_can_be_loaded(saved, alone):
    found = {"model.norm": tensors_of(alone, filled=False)["model.norm"]}
    load_tensors(saved, found, group=alone.world_group)
    assert torch.equal(found["model.norm"].pieces[0].tensor, whole("model.norm"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (of("model.other", torch.zeros(3)), r"model.other is not among the 7 tensors of the checkpoint"),
        (of("model.norm", torch.zeros(4)), r"model.norm has shape \(3,\) in the checkpoint and \(4,\) here"),
        (of("model.norm", torch.zeros(3)), r"model.norm is torch.float64 in the checkpoint and torch.float32 here"),
    ],
)
def test_a_misfit_is_named_and_nothing_is_touched(saved, alone, changes, message):
    with pytest.raises(ValueError, match=message):
        load_tensors(saved, changes, group=alone.world_group)
    assert load_or_tell(alone, saved, changes)


def test_a_misfit_on_one_rank_stops_all_before_any_reads(saved):
    """Only rank 1 asks for a tensor that is not there: the pieces of rank 0 must still be zero."""
    found = run_on_mesh(load_or_tell_on_rank1, saved, dp=2, tp=1)
    assert found == [found[0]] * 2 and "model.other is not among the 7 tensors" in found[0]


def load_or_tell_on_rank1(mesh, path):
    return load_or_tell(mesh, path, of("model.other", torch.zeros(3)) if mesh.rank == 1 else {})


def test_a_hole_in_the_checkpoint_is_named(saved, alone, tmp_path):
    metadata = pickle.loads((saved / ".metadata").read_bytes())
    del metadata.state_dict_metadata["model.columns"].chunks[0]
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(ValueError, match=r"model.columns: the checkpoint holds \d+ of the 91 elements of the piece"):
        load_tensors(tmp_path, tensors_of(alone, filled=False), group=alone.world_group)


@pytest.mark.parametrize(
    ("by_rank", "message"),
    [
        ([vector(4, (0, 2)), vector(4, (0, 2))], r"hold 2 elements and its shape \(4,\) has 4"),
        ([vector(4, (0, 3)), vector(4, (2, 2))], r"hold 5 elements and its shape \(4,\) has 4"),
        ([vector(4, (0, 2), (1, 2)), {}], r"overlapping chunks"),
        ([vector(4, (0, 4)), vector(5)], r"w has shape \(5,\) on rank 1 and \(4,\) on a lower rank"),
        ([vector(4, (0, 2)), vector(4, (2, 2), dtype=torch.int64)], r"w is torch.float32 on one rank and torch.int64"),
        ([vector(4), vector(4)], r"hold 0 elements and its shape \(4,\) has 4"),
        ([{"v": vector(1, (0, 1))["w"]}, {}], r"the tensor w is given under the name v"),
        ([vector(2, (0, 2), (0, 2)), {}], r"w has two pieces at \(0,\) on one rank"),
    ],
)
def test_pieces_that_do_not_make_up_a_tensor_are_not_saved(tmp_path, by_rank, message):
    found = run_on_mesh(save_or_tell, tmp_path, by_rank, dp=2, tp=1)
    assert found == [found[0]] * 2
    with pytest.raises(ValueError, match=message):
        raise ValueError(found[0])
    assert not list(tmp_path.glob("*.distcp"))


def test_replicas_are_spread_over_their_holders():
    """Four ranks hold the same eight boxes of 10 elements, and rank 0 its own of 20: no rank writes more than 30."""
    shared = [item(f"s{i}", 10) for i in range(8)]
    plans = [SavePlan([*shared, *([item("own", 20)] if rank == 0 else [])]) for rank in range(4)]
    written = spread(plans)
    loads = [sum(i.tensor_data.chunk.sizes[0] for i in plan.items) for plan in written]
    assert sum(loads) == 100 and max(loads) <= 30
    names = [i.index.fqn for plan in written for i in plan.items]
    assert sorted(names) == sorted(["own", *(f"s{i}" for i in range(8))])
    assert any(i.index.fqn == "own" for i in written[0].items)


def item(name, size):
    tensor = of(name, torch.zeros(size))[name]
    return _write_item(tensor, tensor.pieces[0])


def test_a_rank_that_cannot_write_is_named_on_all(tmp_path):
    (tmp_path / "__1_0.distcp").mkdir()  # a directory where rank 1's file belongs
    with pytest.raises(MeshError, match=r"CheckpointError: saving to .* failed on rank 1: IsADirectoryError"):
        run_on_mesh(save, tmp_path, dp=2, tp=1)
    assert not (tmp_path / ".metadata").exists()


def test_a_missing_file_names_the_rank_that_needs_it(saved, tmp_path):
    for file in saved.iterdir():
        if file.name != "__3_0.distcp":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(MeshError, match=r"CheckpointError: loading from .* failed on rank \d.*: FileNotFoundError"):
        run_on_mesh(load, tmp_path, dp=2, tp=2)


def test_plans_are_left_as_they_were():
    plan = SavePlan([item("a", 3)], planner_data={"a": (3,)})
    spread([plan, replace(plan)])
    assert len(plan.items) == 1 and plan.planner_data == {"a": (3,)}
