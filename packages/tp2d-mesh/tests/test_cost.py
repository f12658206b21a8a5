import pytest
from hypothesis import given
from hypothesis import strategies as st
from tp2d_mesh import cost


def ring_all_gather(shards):
    """Gather by passing shards around a ring; returns the bytes that each rank sent."""
    ranks = len(shards)
    held = [{rank} for rank in range(ranks)]
    sent = [0] * ranks
    for step in range(ranks - 1):
        for rank in range(ranks):
            shard = (rank - step) % ranks
            held[(rank + 1) % ranks].add(shard)
            sent[rank] += shards[shard]
    assert all(len(have) == ranks for have in held)
    return sent


@given(st.integers(1, 9), st.integers(0, 1000))
def test_all_gather_is_what_a_ring_sends(ranks, shard):
    for sent in ring_all_gather([shard] * ranks):
        assert cost.all_gather_bytes(shard * ranks, ranks=ranks) == pytest.approx(sent)


def test_the_collectives():
    assert cost.all_gather_bytes(1000, ranks=4) == 750
    assert cost.reduce_scatter_bytes(1000, ranks=4) == 750
    assert cost.all_reduce_bytes(1000, ranks=4) == 1500
    assert cost.all_reduce_bytes(1000, ranks=1) == 0


def test_a_tp_layer_has_four_all_reduces_of_the_activations():
    sent = cost.tp_layer_bytes(batch=2, seq=512, hidden=896, itemsize=2, tp=2)
    assert sent == 4 * (2 * 512 * 896 * 2)  # over two ranks an all-reduce sends the tensor once
    assert cost.tp_layer_bytes(batch=2, seq=512, hidden=896, itemsize=2, tp=1) == 0


def test_fsdp_gathers_twice_and_reduces_once_per_micro_batch():
    once = cost.fsdp_step_bytes(parameter_bytes=1000, gradient_bytes=2000, dp=4)
    assert once == 750 + 750 + 1500
    assert cost.fsdp_step_bytes(parameter_bytes=1000, gradient_bytes=2000, dp=4, micro_batches=3) == 3 * once


def test_ddp_all_reduces_once_per_step():
    assert cost.ddp_step_bytes(gradient_bytes=2000, dp=4) == 3000


def test_seconds():
    assert cost.transfer_seconds(3e9, bytes_per_second=1.5e9) == 2


def test_what_is_no_size_or_bandwidth_is_refused():
    with pytest.raises(ValueError, match="bytes_per_second=0 is not a bandwidth: give a positive number"):
        cost.transfer_seconds(1, bytes_per_second=0)
    with pytest.raises(ValueError, match="size=1 bytes over ranks=0: give a size of at least 0 and at least 1 rank"):
        cost.all_gather_bytes(1, ranks=0)
    with pytest.raises(ValueError, match="size=-1 bytes over ranks=2"):
        cost.reduce_scatter_bytes(-1, ranks=2)
