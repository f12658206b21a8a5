from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tp2d_mesh import cost
from tp2d_mesh.cost import flops_per_token

SIZES = {"vocab_size": 100, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4}


def config(**values):
    found = SimpleNamespace(**SIZES, **values)
    found.get_text_config = lambda: found
    return found


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


def test_flops_of_a_token():
    """6 per parameter that multiplies, and 12 x layers x width x length for attention."""
    untied = config(tie_word_embeddings=False)
    assert flops_per_token(untied, parameters=5000, seq_length=32) == 6 * (5000 - 1600) + 12 * 3 * 16 * 32
    tied = config(tie_word_embeddings=True)
    assert flops_per_token(tied, parameters=5000, seq_length=32) == 6 * 5000 + 12 * 3 * 16 * 32
    wide = config(head_dim=8, tie_word_embeddings=True)  # heads wider than the hidden size
    assert flops_per_token(wide, parameters=5000, seq_length=32) == 6 * 5000 + 12 * 3 * 32 * 32


def test_flops_of_transformers_configurations():
    """Shows a name that transformers has changed: experts or head sizes would go uncounted."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    untied = transformers.LlamaConfig(**SIZES, tie_word_embeddings=False)
    assert flops_per_token(untied, parameters=5000, seq_length=32) == 6 * (5000 - 1600) + 12 * 3 * 16 * 32
    wide = transformers.Qwen3Config(**SIZES, head_dim=8, tie_word_embeddings=True)
    assert flops_per_token(wide, parameters=5000, seq_length=32) == 6 * 5000 + 12 * 3 * 32 * 32
    assert flops_per_token(transformers.MixtralConfig(), parameters=5000, seq_length=32) is None


@pytest.mark.parametrize("name", ["num_experts", "num_local_experts", "n_routed_experts"])
def test_flops_of_a_mixture_of_experts_are_not_guessed(name):
    experts = config(tie_word_embeddings=False, **{name: 8})
    assert flops_per_token(experts, parameters=5000, seq_length=32) is None
