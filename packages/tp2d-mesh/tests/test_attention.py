"""Our attention function: every kernel against each document alone, what it refuses, and that it compiles once."""

from collections.abc import Sequence
from importlib.util import find_spec
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import varlen
from tp2d_mesh import DOCUMENT_FAMILIES, EngineSpec, build_skeleton, model_batch
from tp2d_mesh.model.attention import varlen_kernel
from tp2d_mesh.model.attention.documents import Documents, documents_of
from tp2d_mesh.model.attention.function import (
    ATTENTION,
    choose_attention,
    document_attention,
    kernel_for,
    register_attention,
)
from tp2d_mesh.model.attention.packed_kernel import packed_attention
from tp2d_mesh.testing.packed_parity import packed_batch, varlen_attention_in_torch
from tp2d_mesh.testing.parity import TINY, Batch, tiny_model

CPU = torch.device("cpu")
ROWS = ((5, 1, 6), (12,), (3, 9))
KERNELS = ("each", "mask", "varlen")
needs_transformers = pytest.mark.skipif(
    find_spec("transformers") is None, reason="transformers is not installed: tp2d-mesh itself does without"
)


class Module(torch.nn.Module):
    is_causal = True


def tensors(*, heads: int = 4, kv_heads: int = 4, width: int = 8, value_width: int = 8) -> list[torch.Tensor]:
    """Query, key and value of three rows of 12 tokens, float64."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((heads, width), (kv_heads, width), (kv_heads, value_width))
    return [torch.randn(3, h, 12, w, generator=generator, dtype=torch.float64).requires_grad_() for h, w in shapes]


def ends_of(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    return F.pad(torch.tensor([n for row in rows for n in row]).cumsum(0), (1, 0)).to(torch.int32)


def alone(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, rows: Any, window: int | None) -> torch.Tensor:
    """`(batch, seq, heads, dim)`: every document by itself, its scores written out."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    whole = []
    for row, lengths in enumerate(rows):
        places = F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).tolist()
        for start, stop in pairwise(places):
            scores = q[row, :, start:stop] @ k[row, :, start:stop].mT * q.shape[-1] ** -0.5
            distance = torch.arange(stop - start)[:, None] - torch.arange(stop - start)
            hidden = (distance < 0) | (distance >= (window or 99))
            whole.append((scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v[row, :, start:stop]).transpose(0, 1))
    return torch.cat(whole).unflatten(0, (q.shape[0], q.shape[2]))


def ours(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
    return document_attention(Module(), q, k, v, None, **options)[0]


@pytest.mark.parametrize("window", [None, 1, 3, 12, 20])
@pytest.mark.parametrize(
    "sizes", [{}, {"kv_heads": 2}, {"width": 12, "value_width": 4}, {"heads": 6, "kv_heads": 1, "value_width": 12}]
)
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_document_computes_what_it_computes_alone(kernel: str, packed: bool, sizes: dict, window: int | None) -> None:
    """Shows attention across an end, a window off by one, heads grouped wrongly, a scale taken from widened heads."""
    rows = ROWS if packed else ((12,), (12,), (12,))
    inputs = tensors(**sizes)
    expected = alone(*inputs, rows=rows, window=window)
    longest = torch.empty(12)
    with varlen_attention_in_torch():
        found = ours(
            *inputs,
            document_kernel=kernel,
            document_ends=ends_of(rows) if packed else None,
            longest_document=longest if packed and kernel == "varlen" else None,
            sliding_window=window,
        )
    assert found.is_contiguous() and found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for ours_, theirs in zip(
        torch.autograd.grad(found, inputs, weights), torch.autograd.grad(expected, inputs, weights), strict=True
    ):
        torch.testing.assert_close(ours_, theirs, rtol=0, atol=2e-14)


def test_grouped_heads_are_copied_for_a_kernel_that_takes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.11's variable length attention has no `enable_gqa`."""
    monkeypatch.setattr(varlen_kernel, "_GROUPED", False)
    inputs = tensors(kv_heads=2)
    with varlen_attention_in_torch():
        found = ours(*inputs, document_kernel="varlen", document_ends=ends_of(ROWS), longest_document=torch.empty(12))
    torch.testing.assert_close(found, alone(*inputs, rows=ROWS, window=None), rtol=0, atol=1e-14)


def test_wide_dtypes_and_heads_stay_away_from_the_kernel_that_does_not_take_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", None)
    for inputs in (tensors(), [x.bfloat16() for x in tensors(width=264, value_width=264)]):
        assert ours(*inputs, document_kernel="varlen", document_ends=ends_of(ROWS)).isfinite().all()


def test_the_operation_is_what_torch_expects_of_one() -> None:
    """Shows a fake that differs from the real one, a gradient that is wrong, or an output that shares memory."""
    inputs = (*tensors(), F.pad(ends_of(ROWS), (0, 1), value=36), 3, 0.3)
    torch.library.opcheck(packed_attention, inputs)
    torch.autograd.gradcheck(lambda *x: packed_attention(*x, *inputs[3:])[0], inputs[:3])


@pytest.mark.parametrize(
    ("ends", "message"),
    [
        ([0, 12, 24], "go from 0 to 24 where 3 rows of 12 tokens"),
        ([3, 12, 24, 36], "go from 3 to 36"),
        ([0, 12, 30, 36], "from token 12 to 30 does not lie in one row of 12 tokens"),
        ([0, 24, 12, 36], "from token 0 to 24 does not lie"),
    ],
)
def test_ends_of_other_rows_are_refused(ends: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ours(*tensors(), document_kernel="each", document_ends=torch.tensor(ends, dtype=torch.int32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "Module was called without the documents' ends: .* its code drops them: use attn_implementation='sdpa'"),
        ({"document_ends": ends_of(ROWS)}, "without the documents' ends"),
        ({"document_kernel": "each", "dropout": 0.1}, "would leave dropout out"),
        ({"document_kernel": "each", "softcap": 50.0}, "would leave softcap out"),
        ({"document_kernel": "each", "s_aux": torch.ones(4)}, "would leave s_aux out"),
        ({"document_kernel": "each", "is_causal": False}, "asks for one that looks ahead"),
    ],
)
def test_what_would_be_left_out_is_refused(options: dict, message: str) -> None:
    """Also without the mark that every batch has: a model that drops arguments would mix documents in silence."""
    with pytest.raises(ValueError, match=message):
        ours(*tensors(), **options)


def test_a_mask_and_a_cache_are_refused() -> None:
    q, k, v = tensors()
    with pytest.raises(ValueError, match="would leave attention_mask out"):
        document_attention(Module(), q, k, v, torch.ones(3, 1, 12, 12), document_kernel="each")
    with pytest.raises(ValueError, match="1 queries and 12 keys"):
        ours(q[:, :, :1], k, v, document_kernel="each")


def config_of(family: str, **values: Any) -> Any:
    config = SimpleNamespace(model_type=family, **values)
    config.get_text_config = lambda: config
    return config


def test_the_attention_is_chosen_by_family_and_by_what_the_configuration_asks_for() -> None:
    assert choose_attention(config_of("llama", attention_dropout=0.0, attention_bias=True), requested=None) == ATTENTION
    assert choose_attention(config_of("llama"), requested="eager") == "eager"
    for config in (
        config_of("gemma2"),
        config_of("stablelm"),
        config_of("llama", attention_dropout=0.1),
        config_of("gemma3_text", attn_logit_softcapping=50.0),
    ):
        assert choose_attention(config, requested=None) is None
        with pytest.raises(ValueError, match=r"='tp2d' cannot be used: .*: leave attn_implementation out"):
            choose_attention(config, requested=ATTENTION)
    assert choose_attention(config_of("llama"), requested=None, own_code=True) is None


def test_the_kernel_follows_the_device() -> None:
    assert kernel_for(CPU) == "each" and kernel_for(torch.device("meta")) == "mask"


def test_the_name_switches_none_of_transformers_paths() -> None:
    assert not any(word in ATTENTION for word in ("flash", "flex", "sdpa", "eager", "paged"))


def test_documents_are_found_as_transformers_finds_them() -> None:
    """A row begins a document, whatever its first position, and so does a position that does not follow the last."""
    positions = torch.tensor([[0, 1, 0, 1], [2, 3, 7, 0], [1, 2, 3, 4]])
    found = documents_of(positions)
    assert (found.ends.tolist(), found.longest, found.tokens) == ([0, 2, 4, 6, 7, 8, 12], 4, 12)
    assert found.ends.dtype == torch.int32


class Carrying(dict[str, torch.Tensor]):
    documents: Documents


def carrying(batch: Batch, *, tokens: int | None = None) -> Carrying:
    """The batch as the data package's loader hands it out, with the ends of its documents."""
    found = Carrying(batch)
    documents = documents_of(batch["position_ids"])
    found.documents = Documents(ends=documents.ends, longest=documents.longest, tokens=tokens or documents.tokens)
    return found


BATCH = packed_batch(vocab_size=TINY["vocab_size"])


def test_ends_that_the_batch_carries_are_taken_without_a_look_at_the_positions() -> None:
    config = config_of("llama", _attn_implementation=ATTENTION)
    batch = carrying(BATCH)
    batch["position_ids"] = torch.zeros_like(BATCH["position_ids"])
    assert model_batch(batch, config=config, device=CPU).inputs["document_ends"] is batch.documents.ends
    with pytest.raises(ValueError, match="ends of 96 tokens and has position_ids of 192: make a plain dict"):
        model_batch(carrying(BATCH, tokens=96), config=config, device=CPU)


WINDOWS = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}


@needs_transformers
@pytest.mark.parametrize(
    ("family", "changes"), [("llama", {}), ("qwen2", WINDOWS), ("mistral", WINDOWS), ("olmo3", {"sliding_window": 4})]
)
@pytest.mark.parametrize("packed", [True, False])
def test_a_model_computes_what_it_does_under_sdpa(family: str, changes: dict, packed: bool) -> None:
    """Shows a window that transformers puts into its mask and does not hand to the attention, packed or not."""
    model = tiny_model(family, dtype=torch.float64, **changes)
    batch = BATCH if packed else {name: BATCH[name] for name in ("input_ids", "labels")}
    register_attention()
    logits = {}
    for name in ("sdpa", ATTENTION):
        model.config._attn_implementation = name
        logits[name] = model_batch(batch, config=model.config, device=CPU).logits(model)
    torch.testing.assert_close(logits[ATTENTION], logits["sdpa"], rtol=0, atol=1e-13)


@needs_transformers
def test_a_model_that_drops_the_ends_is_stopped() -> None:
    """Stablelm hands its attention no arguments that it does not know itself."""
    register_attention()
    model = tiny_model("stablelm", dtype=torch.float64)
    assert "stablelm" not in DOCUMENT_FAMILIES
    model.config._attn_implementation = ATTENTION
    batch = {name: BATCH[name] for name in ("input_ids", "labels")}
    with pytest.raises(ValueError, match="StableLmAttention was called without the documents' ends"):
        model_batch(batch, config=model.config, device=CPU).logits(model)


@needs_transformers
def test_a_skeleton_has_it_where_it_was_shown_exact() -> None:
    spec = EngineSpec()
    for family, expected in (("llama", ATTENTION), ("stablelm", "sdpa")):
        config = tiny_model(family, dtype=torch.float32).config
        assert build_skeleton(config, spec=spec, dtype=torch.float32).config._attn_implementation == expected
    saved = build_skeleton(tiny_model("llama", dtype=torch.float32).config, spec=spec, dtype=torch.float32).config
    assert ATTENTION not in saved.to_json_string(use_diff=False)  # others could not load it
