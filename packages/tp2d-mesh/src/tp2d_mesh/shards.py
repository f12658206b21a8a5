"""What one rank holds of a tensor, by the tensor's full name and place. Engines and checkpoints exchange this form.

A rank's part of a global tensor is a set of boxes (`Piece`): one box for most parameters, a few for a flat ZeRO
partition or a packed projection. Nothing here communicates, copies or allocates.
"""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from tp2d_mesh.layout import Layout


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A box of a global tensor that lives on this rank.

    Args:
        offsets: where the box starts in the global tensor, one number per dim.
        tensor: a live view of this rank's storage; its shape is the box's shape. Reading it saves the box,
            `tensor.copy_(...)` restores it.
    """

    offsets: tuple[int, ...]
    tensor: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class NamedTensor:
    """This rank's boxes of one named global tensor.

    Args:
        name: `model.<parameter>` or `optim.<parameter>.<moment>`, with the name of the unsharded model.
        global_shape: the shape of the whole tensor.
        pieces: the boxes held here, none overlapping another; replicas on other ranks hold equal boxes.

    Raises:
        ValueError: a box does not lie in the tensor.
    """

    name: str
    global_shape: tuple[int, ...]
    pieces: tuple[Piece, ...]

    def __post_init__(self) -> None:
        for piece in self.pieces:
            ends = [start + size for start, size in zip(piece.offsets, piece.tensor.shape, strict=True)]
            if len(ends) != len(self.global_shape) or any(e > g for e, g in zip(ends, self.global_shape, strict=True)):
                raise ValueError(
                    f"{self.name}: a piece of shape {tuple(piece.tensor.shape)} at {piece.offsets} does not lie in a "
                    f"tensor of shape {self.global_shape}."
                )


def chunk_range(size: int, parts: int, index: int) -> tuple[int, int]:
    """The half-open range of chunk `index` when `size` rows are cut as `torch.chunk` cuts them.

    All chunks but the last few have `ceil(size / parts)` rows; the last ones may be shorter or empty. This is
    the rule of DTensor's `Shard` and of FSDP2.
    """
    step = -(-size // parts)
    start = min(index * step, size)
    return start, min(start + step, size)


def tp_ranges(size: int, *, tp: int, tp_rank: int, blocks: int = 1) -> list[tuple[int, int]]:
    """The ranges of a split dim that one tp rank holds.

    Args:
        size: the global size of the dim, in elements.
        tp: how many ranks share it.
        tp_rank: which of them.
        blocks: how many equal blocks the dim is packed from (2 for a fused gate and up projection). Every block is
            cut by itself, so that a rank holds its part of each.

    Returns:
        Half-open ranges of global elements, in local order.

    Raises:
        ValueError: the dim is not a whole number of blocks.
    """
    if size % blocks:
        raise ValueError(f"a dim of {size} elements cannot be packed from {blocks} equal blocks.")
    block = size // blocks
    start, stop = chunk_range(block, tp, tp_rank)
    return [(b * block + start, b * block + stop) for b in range(blocks)]


@dataclass(frozen=True, kw_only=True)
class Box:
    """A box of a global tensor: where it starts and its shape, in elements, one number per dim."""

    offsets: tuple[int, ...]
    shape: tuple[int, ...]


def local_boxes(
    global_shape: Sequence[int], *, layout: Layout, rank: int, tp_dim: int | None, blocks: int = 1
) -> list[Box]:
    """The boxes of a parameter that `rank` holds under FSDP2 on tensor parallelism.

    Tensor parallelism cuts the parameter along `tp_dim` over tp; FSDP2 then cuts what is left along dim 0 over dp.

    Args:
        global_shape: the whole parameter's shape.
        layout: the dp x tp layout.
        rank: a global rank.
        tp_dim: the dim that tensor parallelism splits, or None where every tp rank holds all of it.
        blocks: see `tp_ranges`.

    Returns:
        Boxes in local order: the rank's local tensor is their concatenation along `tp_dim or 0`. No box is empty.
    """
    shape = tuple(global_shape)
    if not shape:
        return [Box(offsets=(), shape=())]
    at = layout.coordinates(rank)
    cut = {d: [(0, size)] for d, size in enumerate(shape)}
    if tp_dim is not None:
        cut[tp_dim] = tp_ranges(shape[tp_dim], tp=layout.tp, tp_rank=at.tp_rank, blocks=blocks)
    held = sum(stop - start for start, stop in cut[0])
    cut[0] = list(_clip(cut[0], *chunk_range(held, layout.dp, at.dp_rank)))
    boxes = [Box(offsets=_starts(r), shape=_sizes(r)) for r in itertools.product(*cut.values())]
    return [box for box in boxes if 0 not in box.shape]


def named_tensor(
    name: str,
    local: torch.Tensor,
    *,
    global_shape: Sequence[int],
    layout: Layout,
    rank: int,
    tp_dim: int | None,
    blocks: int = 1,
) -> NamedTensor:
    """A rank's local tensor under FSDP2 on tensor parallelism as boxes of the global one; see `local_boxes`."""
    boxes = local_boxes(global_shape, layout=layout, rank=rank, tp_dim=tp_dim, blocks=blocks)
    along = tp_dim or 0
    pieces, at = [], 0
    for box in boxes:
        view = local.narrow(along, at, box.shape[along]) if box.shape else local
        pieces.append(Piece(offsets=box.offsets, tensor=view))
        at += box.shape[along] if box.shape else 0
    return NamedTensor(name=name, global_shape=tuple(global_shape), pieces=tuple(pieces))


def _clip(ranges: Sequence[tuple[int, int]], low: int, high: int) -> Iterator[tuple[int, int]]:
    """The part of the concatenated `ranges` between positions `low` and `high` of the concatenation."""
    at = 0
    for start, stop in ranges:
        left, right = max(low, at), min(high, at + stop - start)
        if left < right:
            yield start + left - at, start + right - at
        at += stop - start


def _starts(ranges: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    return tuple(start for start, _ in ranges)


def _sizes(ranges: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    return tuple(stop - start for start, stop in ranges)
