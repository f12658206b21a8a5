"""ZeRO's flat partitions as boxes of the model's tensors.

ZeRO 1 and 2 join the parameters of an optimizer group, row by row, into one flat tensor. Each dp rank gets an equal
range of it, wherever a parameter's border falls. Under tensor parallelism the joined parameters are themselves shards.
So a rank's range of one shard is a run of elements: up to three boxes of a matrix, which are the end of a row, whole
rows, and the start of a row. Nothing here communicates or copies.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from tp2d_mesh import Box, NamedTensor, Piece


def run_boxes(shape: Sequence[int], start: int, stop: int) -> Iterator[tuple[int, Box]]:
    """The boxes that elements `start .. stop - 1` of a row-major tensor make up, in order.

    Args:
        shape: the tensor's shape, one number per dim.
        start: the first element, counted in the flattened tensor.
        stop: one past the last.

    Yields:
        `(first element, box)`: at most `2 * len(shape) - 1` of them, none empty.
    """
    if start >= stop:
        return
    if len(shape) < 2:
        yield start, Box(offsets=(start,) * len(shape), shape=(stop - start,) * len(shape))
        return
    row = math.prod(shape[1:])
    first, last = -(-start // row), stop // row  # the whole rows
    if first > last:  # within one row
        yield from _in_row(shape, last, start, stop)
        return
    yield from _in_row(shape, first - 1, start, first * row)
    if first < last:
        rest = tuple(shape[1:])
        yield first * row, Box(offsets=(first, *(0 for _ in rest)), shape=(last - first, *rest))
    yield from _in_row(shape, last, last * row, stop)


def _in_row(shape: Sequence[int], index: int, start: int, stop: int) -> Iterator[tuple[int, Box]]:
    base = index * math.prod(shape[1:])
    for at, box in run_boxes(shape[1:], start - base, stop - base):
        yield base + at, Box(offsets=(index, *box.offsets), shape=(1, *box.shape))


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where this rank's part of one parameter lies: in the model and in a flat partition.

    Args:
        name: the parameter's full name in the unsharded model.
        global_shape: its shape there.
        local_shape: the shape of this tp rank's shard of it.
        offsets: where that shard starts in the whole, one number per dim.
        group: which flat partition holds it, the index of an optimizer group.
        start: the first element of the shard, flattened, that this dp rank owns.
        numel: how many it owns from there; 0 where it owns none.
        at: where they start in the flat partition.
    """

    name: str
    global_shape: tuple[int, ...]
    local_shape: tuple[int, ...]
    offsets: tuple[int, ...]
    group: int = 0
    start: int = 0
    numel: int = 0
    at: int = 0

    def pieces(self, run: torch.Tensor) -> tuple[Piece, ...]:
        """The boxes of the owned elements.

        Args:
            run: `(numel,)`, the owned elements in order; the pieces are views of it.
        """
        return tuple(
            Piece(
                offsets=tuple(o + b for o, b in zip(self.offsets, box.offsets, strict=True)),
                tensor=run[first - self.start :][: math.prod(box.shape)].view(box.shape),
            )
            for first, box in run_boxes(self.local_shape, self.start, self.start + self.numel)
        )

    def named(self, name: str, run: torch.Tensor) -> NamedTensor:
        """The same as a `NamedTensor` called `name`."""
        return NamedTensor(name=name, global_shape=self.global_shape, pieces=self.pieces(run))
