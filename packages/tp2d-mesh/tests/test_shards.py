"""The arithmetic of a shard: every element held, by the right ranks, as torch itself cuts it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tp2d_mesh import Layout, Mesh, NamedTensor, Piece, chunk_range, local_boxes, named_tensor
from tp2d_mesh.testing import run_on_mesh

sizes = st.integers(1, 9)


@given(size=st.integers(0, 40), parts=st.integers(1, 9))
def test_chunks_are_torchs(size: int, parts: int) -> None:
    """Shows another rounding than `torch.chunk`, after which a rank would read its neighbour's rows."""
    chunks = torch.arange(size).chunk(parts) if size else ()
    expected = [c.tolist() for c in chunks] + [[]] * (parts - len(chunks))
    assert [list(range(*chunk_range(size, parts, i))) for i in range(parts)] == expected


@settings(deadline=None)
@given(
    shape=st.tuples(sizes, sizes),
    dp=st.integers(1, 4),
    tp=st.integers(1, 4),
    tp_dim=st.sampled_from([None, 0, 1]),
    packed=st.booleans(),
)
def test_boxes_cover_every_element_as_often_as_it_is_replicated(
    shape: tuple[int, int], dp: int, tp: int, tp_dim: int | None, packed: bool
) -> None:
    blocks = 2 if packed and tp_dim is not None else 1
    shape = tuple(n * blocks if d == tp_dim else n for d, n in enumerate(shape))
    layout = Layout(dp=dp, tp=tp)
    held = torch.zeros(shape, dtype=torch.long)
    for rank in range(layout.world_size):
        for box in local_boxes(shape, layout=layout, rank=rank, tp_dim=tp_dim, blocks=blocks):
            held[tuple(slice(o, o + n) for o, n in zip(box.offsets, box.shape, strict=True))] += 1
    assert torch.equal(held, torch.full(shape, tp if tp_dim is None else 1))


def test_packed_blocks_are_cut_one_by_one() -> None:
    """Shows a fused gate and up projection cut in the middle: rank 1 would get all of up and no gate."""
    boxes = local_boxes((8, 3), layout=Layout(dp=1, tp=2), rank=1, tp_dim=0, blocks=2)
    assert [(box.offsets, box.shape) for box in boxes] == [((2, 0), (2, 3)), ((6, 0), (2, 3))]


def test_a_scalar_is_one_box() -> None:
    tensor = named_tensor("x", torch.tensor(3.0), global_shape=(), layout=Layout(dp=2, tp=2), rank=3, tp_dim=None)
    assert [(p.offsets, p.tensor.item()) for p in tensor.pieces] == [((), 3.0)]


def as_torch_cuts(mesh: Mesh, shape: tuple[int, int], tp_dim: int | None) -> bool:
    """Whether the boxes of this rank hold what FSDP2 on a tensor parallel DTensor leaves on it."""
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    whole = torch.arange(shape[0] * shape[1], dtype=torch.float32).view(shape)
    placement = Replicate() if tp_dim is None else Shard(tp_dim)
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(distribute_tensor(whole, mesh.device_mesh["tp"], [placement]))
    fully_shard(module, mesh=mesh.device_mesh["dp"])
    local = module.weight.detach().to_local()
    tensor = named_tensor("w", local, global_shape=shape, layout=mesh.layout, rank=mesh.rank, tp_dim=tp_dim)
    boxes = [tuple(slice(o, o + n) for o, n in zip(p.offsets, p.tensor.shape, strict=True)) for p in tensor.pieces]
    held = sum(p.tensor.numel() for p in tensor.pieces)
    same = [torch.equal(whole[box], p.tensor) for box, p in zip(boxes, tensor.pieces, strict=True)]
    return held == local.numel() and all(same)


@pytest.mark.parametrize(("dp", "tp"), [(2, 2), (4, 1)])
@pytest.mark.parametrize("tp_dim", [None, 0, 1])
def test_boxes_are_where_fsdp2_puts_them(dp: int, tp: int, tp_dim: int | None) -> None:
    assert all(run_on_mesh(as_torch_cuts, (7, 5), tp_dim, dp=dp, tp=tp))


def test_pieces_are_live_views() -> None:
    local = torch.zeros(4, 3)
    tensor = named_tensor("w", local, global_shape=(8, 3), layout=Layout(dp=2, tp=1), rank=1, tp_dim=None)
    tensor.pieces[0].tensor.fill_(5)
    assert tensor.pieces[0].offsets == (4, 0)
    assert local.eq(5).all()


def test_refusals() -> None:
    with pytest.raises(
        ValueError, match=r"w: a piece of shape \(2,\) at \(3,\) does not lie in a tensor of shape \(4,\)"
    ):
        NamedTensor(name="w", global_shape=(4,), pieces=(Piece(offsets=(3,), tensor=torch.zeros(2)),))
    with pytest.raises(ValueError, match="7 elements cannot be packed from 2 equal blocks"):
        local_boxes((7, 2), layout=Layout(dp=1, tp=2), rank=0, tp_dim=0, blocks=2)
