"""What a model is given for packed rows, and what is refused; that it computes the same is each engine's test."""

from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tp2d_mesh import DOCUMENT_FAMILIES, PACKED_FAMILIES, VARLEN_FAMILIES, check_packed, forward_inputs, model_batch
from tp2d_mesh.model.attention.function import ATTENTION, register_attention
from tp2d_mesh.testing.packed_parity import (
    LENGTHS,
    documents,
    documents_reference,
    flash_attention_in_torch,
    named_gradients,
    packed_batch,
)
from tp2d_mesh.testing.parity import TINY, tiny_model

BATCH = packed_batch(vocab_size=TINY["vocab_size"])
CPU = torch.device("cpu")
needs_transformers = pytest.mark.skipif(
    find_spec("transformers") is None, reason="transformers is not installed: tp2d-mesh itself does without"
)


def config_of(family: str, **values: Any) -> Any:
    config = SimpleNamespace(model_type=family, **values)
    config.get_text_config = lambda: config
    return config


def test_rows_without_boundaries_go_in_as_they_are() -> None:
    batch = {"input_ids": BATCH["input_ids"], "labels": BATCH["labels"], "attention_mask": torch.ones(8, 24)}
    assert forward_inputs(batch, attention="sdpa") == {"input_ids": BATCH["input_ids"], "use_cache": False}


def test_a_mask_attention_takes_rows_and_positions() -> None:
    inputs = forward_inputs(BATCH, attention="eager")
    assert set(inputs) == {"input_ids", "position_ids", "use_cache"}
    assert inputs["position_ids"] is BATCH["position_ids"]


@pytest.mark.parametrize("packed", [True, False])
def test_our_attention_is_always_told_whether_rows_are_packed(packed: bool) -> None:
    """Without a mark on unpacked rows too, a model that drops what it does not know could not be told from them."""
    batch = BATCH if packed else {"input_ids": BATCH["input_ids"]}
    inputs = forward_inputs(batch, attention=ATTENTION)
    lengths = [n for row in LENGTHS for n in (*row, 24 - sum(row)) if n]
    assert inputs["document_kernel"] == "each"
    assert inputs["input_ids"] is BATCH["input_ids"] and ("position_ids" in inputs) == packed
    if packed:
        assert inputs["document_ends"].diff().tolist() == lengths
    else:
        assert inputs["document_ends"] is None


def test_flash_attention_takes_one_row_and_the_ends_of_all_documents() -> None:
    """Shows an end lost at a row's end: a document there would run on into the next row's first."""
    inputs = forward_inputs(BATCH, attention="flash_attention_2")
    lengths = [n for row in LENGTHS for n in (*row, 24 - sum(row)) if n]
    assert inputs["input_ids"].shape == inputs["position_ids"].shape == (1, 8 * 24)
    assert inputs["cu_seq_lens_q"].diff().tolist() == lengths
    assert inputs["cu_seq_lens_q"].dtype == torch.int32
    assert inputs["cu_seq_lens_k"].tolist() == inputs["cu_seq_lens_q"].tolist()
    assert inputs["max_length_q"] == inputs["max_length_k"] == 24
    assert type(inputs["max_length_q"]) is int  # a tensor would be read back in every layer


@needs_transformers
@pytest.mark.parametrize("attention", ["eager", "sdpa", "flash_attention_2", ATTENTION])
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_a_model_computes_the_sum_over_the_documents(family: str, attention: str) -> None:
    """Shows what the engines rest on, in one process: transformers keeps documents apart, in each attention."""
    model = tiny_model(family, dtype=torch.float64, sliding_window=4)
    other = tiny_model(family, dtype=torch.float64, sliding_window=4)
    expected = documents_reference(other, [BATCH], optimizer=torch.optim.SGD(other.parameters(), lr=0.0))
    register_attention()
    model.config._attn_implementation = attention
    with flash_attention_in_torch():
        ready = model_batch(BATCH, config=model.config, device=CPU)
        logits = ready.logits(model)
    assert logits.shape == (8, 24, TINY["vocab_size"])
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ready.labels[:, 1:].flatten())
    loss.backward()
    # Gemma's norms and eager's softmax compute in float32 whatever they are given.
    rel = 1e-10 if family == "llama" and attention != "eager" else 1e-6
    assert float(loss.detach()) == pytest.approx(expected.losses[0], rel=rel)
    for name, gradient in named_gradients(model).items():
        scale = float(expected.gradients[name].abs().max())
        torch.testing.assert_close(gradient, expected.gradients[name], rtol=0, atol=rel * scale)


def test_documents_cover_every_trained_token_once() -> None:
    trained = sum(int((labels != -100).sum()) for _, labels in documents(BATCH))
    assert trained == int((BATCH["labels"] != -100).sum())


@pytest.mark.parametrize(
    ("family", "attention", "message"),
    [
        (
            "bloom",
            "sdpa",
            "model type 'bloom' has not been shown to keep the documents of a packed row apart under "
            "attn_implementation='sdpa': use packing=pad, or turn respect_boundaries off.",
        ),
        ("bloom", "flash_attention_3", "model type 'bloom' has not .* attn_implementation='flash_attention_3': use"),
        ("stablelm", ATTENTION, "model type 'stablelm' has not .* attn_implementation='tp2d': use packing=pad"),
        ("llama", "flex_attention", "not been checked with attn_implementation='flex_attention': use 'sdpa', or use"),
    ],
)
def test_what_was_not_proven_is_refused(family: str, attention: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_packed(config_of(family), attention=attention)
    with pytest.raises(ValueError, match=message):
        model_batch(BATCH, config=config_of(family, _attn_implementation=attention), device=CPU)


def test_unpacked_rows_of_any_family_are_taken() -> None:
    batch = {key: BATCH[key] for key in ("input_ids", "labels")}
    assert model_batch(batch, config=config_of("bloom", _attn_implementation=None), device=CPU).inputs


@pytest.mark.parametrize(
    ("rope", "limit"),
    [
        ({"rope_type": "dynamic", "factor": 2.0}, 16),
        ({"rope_type": "longrope", "original_max_position_embeddings": 8}, 8),
        ({"full_attention": {"rope_type": "dynamic"}, "sliding_attention": {"rope_type": "default"}}, 16),
    ],
)
def test_frequencies_that_follow_the_longest_document_are_refused_past_their_limit(rope: dict, limit: int) -> None:
    config = config_of("llama", rope_parameters=rope, max_position_embeddings=16)
    message = rf"than {limit}, and seq_length=24 allows that: use seq_length={limit}, or use packing=pad"
    with pytest.raises(ValueError, match=message):
        check_packed(config, attention="sdpa", seq_length=24)
    check_packed(config, attention="sdpa", seq_length=limit)
    check_packed(config, attention="sdpa")


@pytest.mark.parametrize("kind", ["default", "linear", "yarn", "llama3"])
def test_frequencies_that_follow_the_configuration_alone_are_taken(kind: str) -> None:
    config = config_of("llama", rope_parameters={"rope_type": kind}, max_position_embeddings=16)
    check_packed(config, attention="sdpa", seq_length=24)


@needs_transformers
def test_dynamic_frequencies_do_reach_the_neighbours() -> None:
    """Shows why that is refused: past the limit, what a document computes depends on the longest of the batch."""
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    changes = {"max_position_embeddings": 16, "rope_parameters": rope}
    model = tiny_model("llama", dtype=torch.float64, **changes)
    batch = packed_batch([(4, 20)], vocab_size=TINY["vocab_size"])
    alone = model(input_ids=batch["input_ids"][:, :4], use_cache=False).logits
    packed = model(**forward_inputs(batch, attention="sdpa")).logits[:, :4]
    assert float((alone - packed).detach().abs().max()) > 1e-10


def test_the_tables_name_the_required_families() -> None:
    assert {"llama", "qwen2", "qwen3", "gemma3_text"} <= PACKED_FAMILIES & VARLEN_FAMILIES & DOCUMENT_FAMILIES
