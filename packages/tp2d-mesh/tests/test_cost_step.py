"""The collectives of a step against numbers worked out by hand; the engine's are counted in tp2d-fsdp2."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tp2d_mesh import PRECISIONS, Layout, chunk_range
from tp2d_mesh.cost import Step, Traffic, Unit, shard_elements, step_traffic, totals, tp_layer_bytes

EMBEDDING = Unit(shapes=((50, 32),), gathered_again=False)
LAYER = Unit(shapes=((48, 32), (32, 16), (32,)), gathered_again=True)
HEAD = Unit(shapes=((32,), (50, 32)), gathered_again=False)

STEP = Step(
    layout=Layout(dp=4, tp=2),
    precision=PRECISIONS["bf16"],
    units=(EMBEDDING, LAYER, LAYER, LAYER, HEAD),
    layers=3,
    batch=2,
    seq=10,
    hidden=32,
)
EMBEDDING_ELEMENTS = 52 * 32  # 50 rows over 4 ranks: 13 each, 52 with padding
LAYER_ELEMENTS = 48 * 32 + 32 * 16 + 32
HEAD_ELEMENTS = 52 * 32 + 32
ACTIVATION = 2 * 10 * 32 * 2  # bytes


def by_purpose(step: Step) -> dict[str, Traffic]:
    return {traffic.purpose: traffic for traffic in step_traffic(step)}


def calls_and_size(step: Step, purpose: str) -> tuple[int, int]:
    traffic = by_purpose(step)[purpose]
    return traffic.calls, traffic.size


def test_activations_are_summed_over_tp() -> None:
    assert calls_and_size(STEP, "layers' activations") == (12, 12 * ACTIVATION)
    assert calls_and_size(STEP, "embedding's output") == (1, ACTIVATION)
    assert calls_and_size(STEP, "head's input gradient") == (1, ACTIVATION)


def test_weights_and_gradients_travel_padded_in_their_dtypes() -> None:
    weights = EMBEDDING_ELEMENTS + 2 * 3 * LAYER_ELEMENTS + HEAD_ELEMENTS
    gradients = EMBEDDING_ELEMENTS + 3 * LAYER_ELEMENTS + HEAD_ELEMENTS
    assert calls_and_size(STEP, "weights") == (8, 2 * weights)
    assert calls_and_size(STEP, "gradients") == (5, 4 * gradients)


def test_accumulation_repeats_all_but_the_numbers_of_a_step() -> None:
    once, four = by_purpose(STEP), by_purpose(replace(STEP, micro_batches=4))
    assert once.keys() == four.keys()
    for purpose, traffic in once.items():
        times = 1 if purpose in ("tokens and positions", "norm and loss") else 4
        assert (four[purpose].calls, four[purpose].size) == (times * traffic.calls, times * traffic.size)


def test_gathered_once_each_unit_is_gathered_and_reduced_once_per_step() -> None:
    step = replace(STEP, micro_batches=4, gather_once=True)
    elements = EMBEDDING_ELEMENTS + 3 * LAYER_ELEMENTS + HEAD_ELEMENTS
    assert calls_and_size(step, "weights") == (5, 2 * elements)
    assert calls_and_size(step, "gradients") == (5, 4 * elements)
    assert calls_and_size(step, "layers' activations") == (48, 48 * ACTIVATION)


def test_three_numbers_of_each_token_make_its_loss() -> None:
    gathered = by_purpose(replace(STEP, loss_chunks=5))["loss of tokens"]
    assert (gathered.kind, gathered.calls, gathered.size) == ("all_gather", 5, 2 * 3 * 20 * 4)
    summed = by_purpose(replace(STEP, loss_chunks=None))["loss of tokens"]
    assert (summed.kind, summed.calls, summed.size) == ("all_reduce", 2, 3 * 20 * 4)


def test_numbers_of_a_step() -> None:
    assert calls_and_size(STEP, "tokens and positions") == (1, 16)
    assert calls_and_size(STEP, "norm and loss") == (1, 8)
    assert calls_and_size(replace(STEP, precision=PRECISIONS["fp64"]), "norm and loss") == (1, 16)


def test_partial_gradients_are_summed_once_in_the_masters_dtype() -> None:
    step = replace(STEP, micro_batches=4, partial_gradients=((8,), (6,)))
    assert calls_and_size(step, "partial gradients") == (1, (2 + 2) * 4)
    assert "partial gradients" not in by_purpose(STEP)


@pytest.mark.parametrize(
    ("dp", "tp", "axes"),
    [(1, 1, set()), (4, 1, {"dp", "world"}), (1, 2, {"tp", "world"}), (4, 2, {"dp", "tp", "world"})],
)
def test_nothing_travels_over_an_axis_of_one_rank(dp: int, tp: int, axes: set[str]) -> None:
    step = replace(STEP, layout=Layout(dp=dp, tp=tp), partial_gradients=((8,),))
    assert {traffic.axis for traffic in step_traffic(step)} == axes


def test_what_a_rank_sends() -> None:
    sent = by_purpose(STEP)
    assert sent["weights"].sent == 3 / 4 * sent["weights"].size
    assert sent["gradients"].sent == 3 / 4 * sent["gradients"].size
    layer = tp_layer_bytes(batch=2, seq=10, hidden=32, itemsize=2, tp=2)
    assert sent["layers' activations"].sent == 3 * layer


def test_totals_add_up_what_goes_the_same_way() -> None:
    found = totals(step_traffic(STEP))
    assert found["all_reduce", "tp"] == (14, 14 * ACTIVATION)
    assert found["all_gather", "tp"] == (1, 2 * 3 * 20 * 4)
    assert found.keys() == {
        ("all_reduce", "tp"),
        ("all_gather", "tp"),
        ("all_gather", "dp"),
        ("reduce_scatter", "dp"),
        ("all_reduce", "dp"),
        ("all_reduce", "world"),
    }


@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 9))
def test_the_first_shard_is_the_largest(rows: int, dp: int, width: int) -> None:
    lengths = [stop - start for start, stop in (chunk_range(rows, dp, rank) for rank in range(dp))]
    assert shard_elements((rows, width), dp=dp) == lengths[0] * width == max(lengths) * width
