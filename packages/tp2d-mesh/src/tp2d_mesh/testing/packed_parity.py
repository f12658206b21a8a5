"""Each document alone, in one process, as the judge of packed rows; and the kernels of GPUs in plain torch.

The reference uses nothing of ours: every document goes through the model by itself, without positions and without a
mask, and the gradients of all of them add up.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from tp2d_mesh.model.attention import function as attention
from tp2d_mesh.model.loss.tokens import IGNORED
from tp2d_mesh.testing.parity import Batch, Reference

LENGTHS = ((5, 9, 1, 7), (24,), (3, 3, 12, 6), (11, 10), (2, 22), (8, 8, 8), (1, 1, 20), (17,))
"""Documents of eight rows of up to 24 tokens: no two rows cut alike, single tokens, a whole row, padding at the end."""


def packed_batch(
    lengths: Sequence[Sequence[int]] = LENGTHS, *, seq_length: int = 24, vocab_size: int, seed: int = 0
) -> Batch:
    """A batch of packed rows of random tokens, about one in five of them untrained.

    Args:
        lengths: for each row, its documents' lengths; what is left of the row is padding.
        seq_length: tokens of a row.
        vocab_size: tokens are drawn below it.
        seed: of the tokens.

    Returns:
        `(rows, seq_length)` int64 `input_ids`, `labels` and `position_ids`.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), seq_length)
    ids = torch.randint(1, vocab_size, shape, generator=generator)
    labels = ids.masked_fill(torch.rand(shape, generator=generator) < 0.2, IGNORED)
    positions = torch.empty_like(ids)
    for row, documents in enumerate(lengths):
        used = sum(documents)
        parts = [*documents, *([seq_length - used] if used < seq_length else [])]
        positions[row] = torch.cat([torch.arange(n) for n in parts])
        ids[row, used:], labels[row, used:] = 0, IGNORED
    labels[positions == 0] = IGNORED
    return {"input_ids": ids, "labels": labels, "position_ids": positions}


def documents(batch: Batch) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """`(1, n)` input_ids and labels of each document of a packed batch that has a token to predict."""
    for ids, labels, positions in zip(batch["input_ids"], batch["labels"], batch["position_ids"], strict=True):
        starts = (positions == 0).nonzero()[:, 0].tolist()
        for start, stop in zip(starts, [*starts[1:], len(ids)], strict=True):
            if (labels[start:stop] != IGNORED).any():
                yield ids[None, start:stop], labels[None, start:stop]


def documents_reference(model: nn.Module, batches: Sequence[Batch], *, optimizer: torch.optim.Optimizer) -> Reference:
    """Train `model` on each document of `batches` alone, one optimizer step a batch; `model` is changed in place."""
    losses, norms = [], []
    gradients: dict[str, torch.Tensor] = {}
    model.train()
    for batch in batches:
        tokens = int((batch["labels"] != IGNORED).sum())
        loss = sum(_backward(model(input_ids=i, use_cache=False).logits, y, tokens) for i, y in documents(batch))
        gradients = gradients or named_gradients(model)
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), torch.inf)))
        losses.append(float(loss))
        optimizer.step()
        optimizer.zero_grad()
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    return Reference(losses=losses, norms=norms, gradients=gradients, weights=weights)


def _backward(logits: torch.Tensor, labels: torch.Tensor, tokens: int) -> float:
    """Backward of this document's part of the mean over all `tokens`."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    total = nn.functional.cross_entropy(wide[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    (total / tokens).backward()
    return float(total.detach()) / tokens


def named_gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of every parameter's gradient, zeros where there is none."""
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.detach().clone() for n, p in model.named_parameters()}


@contextmanager
def flash_attention_in_torch() -> Iterator[None]:
    """Within the block, transformers' `flash_attention_2` computes with plain torch, in any dtype, on any device.

    Everything of transformers' own path runs; the two kernels at its end are written out. A model is switched to it by
    `model.config._attn_implementation = "flash_attention_2"` once it is built.
    """
    flash: Any = import_module("transformers.modeling_flash_attention_utils")
    kept, loaded = flash._lazy_imports, flash._loaded_implementation
    kernels = (_no_varlen, _varlen_attention, None, flash._pad_input, flash._unpad_input)
    flash._lazy_imports, flash._loaded_implementation = (lambda *_, **__: kernels), None
    try:
        yield
    finally:
        flash._lazy_imports, flash._loaded_implementation = kept, loaded


@contextmanager
def varlen_attention_in_torch() -> Iterator[None]:
    """Within the block, torch's variable length attention is plain torch, in any dtype, on any device.

    So our attention's path on GPUs runs anywhere: call it with `document_kernel="varlen"`.
    """
    module: Any = import_module("torch.nn.attention.varlen")
    kept = module.varlen_attn, attention.HALVES
    module.varlen_attn, attention.HALVES = _varlen_attn, attention.HALVES | {torch.float32, torch.float64}
    try:
        yield
    finally:
        module.varlen_attn, attention.HALVES = kept


def _varlen_attn(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> torch.Tensor:
    """`torch.nn.attention.varlen.varlen_attn`; without `enable_gqa` it takes no grouped heads."""
    if query.shape[-1] % 8 or (query.shape[1] != key.shape[1] and not enable_gqa):
        raise RuntimeError(f"the kernel takes no heads of {tuple(query.shape[1:])} and {tuple(key.shape[1:])}")
    return _varlen_attention(
        query,
        key,
        value,
        cu_seqlens_q=cu_seq_q,
        cu_seqlens_k=cu_seq_k,
        max_seqlen_q=max_q,
        max_seqlen_k=max_k,
        softmax_scale=scale,
        causal=window_size[1] == 0,
        window_size=window_size,
    )


def _no_varlen(*_: Any, **__: Any) -> torch.Tensor:
    raise RuntimeError("attention was called without the documents' ends")


def _varlen_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    *,
    cu_seqlens_q: torch.Tensor,
    cu_seqlens_k: torch.Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    softmax_scale: float | None,
    causal: bool,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
) -> torch.Tensor:
    """`flash_attn_varlen_func` on `(tokens, heads, head_dim)`, document by document."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    out, ends = [], cu_seqlens_q.tolist()
    for start, stop in pairwise(ends):
        if stop - start > max_seqlen_q:
            raise RuntimeError(f"a document of {stop - start} tokens under max_seqlen_q={max_seqlen_q}")
        scores = torch.einsum("ihd,jhd->hij", q[start:stop], k[start:stop])
        scores = scores * (q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale)
        scores = scores if not softcap else torch.tanh(scores / softcap) * softcap
        scores = scores.masked_fill(~_sees(stop - start, causal=causal, window=window_size[0]), -torch.inf)
        if s_aux is not None:
            scores = torch.cat([scores, s_aux[:, None, None].expand(-1, scores.shape[1], 1)], dim=-1)
        out.append(torch.einsum("hij,jhd->ihd", scores.softmax(dim=-1)[..., : stop - start], v[start:stop]))
    return torch.cat(out)


def _sees(length: int, *, causal: bool, window: int) -> torch.Tensor:
    distance = torch.arange(length)[:, None] - torch.arange(length)
    sees = distance >= 0 if causal else torch.ones_like(distance, dtype=torch.bool)
    return sees if window < 0 else sees & (distance <= window)
