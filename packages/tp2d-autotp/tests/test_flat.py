"""Runs of elements as boxes: every element once, in order, and live."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from tp2d_autotp.flat import Place, run_boxes

shapes = st.lists(st.integers(1, 5), max_size=3).map(tuple)


@st.composite
def runs(draw: st.DrawFn) -> tuple[tuple[int, ...], int, int]:
    shape = draw(shapes)
    start = draw(st.integers(0, math.prod(shape)))
    return shape, start, draw(st.integers(start, math.prod(shape)))


@given(runs())
def test_boxes_hold_the_run_in_order(run: tuple[tuple[int, ...], int, int]) -> None:
    shape, start, stop = run
    whole = torch.arange(math.prod(shape)).view(shape)
    found: list[int] = []
    for first, box in run_boxes(shape, start, stop):
        part = whole[tuple(slice(o, o + n) for o, n in zip(box.offsets, box.shape, strict=True))]
        assert part.shape == box.shape and part.numel() and part.flatten()[0] == first
        found += part.flatten().tolist()
    assert found == list(range(start, stop))


@given(runs())
def test_a_matrix_needs_three_boxes_at_most(run: tuple[tuple[int, ...], int, int]) -> None:
    shape, start, stop = run
    assert len(list(run_boxes(shape, start, stop))) <= max(1, 2 * len(shape) - 1)


def test_pieces_are_views_at_their_global_place() -> None:
    """A shard of 3 columns, the second of two, of which this rank owns elements 2 to 6 of the flattened shard."""
    whole = torch.arange(24.0).view(4, 6)
    shard = whole[:, 3:].contiguous()
    flat = torch.zeros(10)
    place = Place(
        name="w", global_shape=(4, 6), local_shape=(4, 3), offsets=(0, 3), group=0, start=2, numel=5, at=1
    )  # fmt: skip
    run = flat.narrow(0, place.at, place.numel)
    named = place.named("model.w", run)
    assert [piece.offsets for piece in named.pieces] == [(0, 5), (1, 3), (2, 3)]
    for piece in named.pieces:
        box = tuple(slice(o, o + n) for o, n in zip(piece.offsets, piece.tensor.shape, strict=True))
        piece.tensor.copy_(whole[box])
    assert flat.tolist() == [0.0, *shard.flatten()[2:7].tolist(), 0.0, 0.0, 0.0, 0.0]


def test_a_rank_that_owns_nothing_has_no_pieces() -> None:
    place = Place(name="w", global_shape=(4, 6), local_shape=(4, 3), offsets=(0, 0))
    assert place.named("model.w", torch.empty(0)).pieces == ()
