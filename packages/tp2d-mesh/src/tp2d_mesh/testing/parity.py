"""One process as the judge: a plain transformers training loop, and how far a parallel engine's numbers are from it.

Both engines' tests, and anyone who wants to know whether a model of theirs trains exactly, compare against this. The
reference uses nothing of ours: the whole global batch goes through the model in one forward, with the attention mask
and transformers' own loss.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from tp2d_mesh.layout import Layout
from tp2d_mesh.model.loss.tokens import IGNORED
from tp2d_mesh.shards import NamedTensor

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What one process computed.

    Args:
        losses: mean token loss of every step.
        norms: global gradient norm of every step, before clipping.
        gradients: parameter name -> gradient of the first step, before clipping.
        weights: parameter name -> value after the last step.
    """

    losses: list[float]
    norms: list[float]
    gradients: dict[str, torch.Tensor]
    weights: dict[str, torch.Tensor]


TINY = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 50,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attention_dropout": 0.0,
    "residual_dropout": 0.0,
}
"""Sizes of a model small enough for exhaustive checks; vocabulary and MLP do not divide by 4."""


def tiny_model(family: str, *, dtype: torch.dtype, seed: int = 0, **changes: Any) -> Any:
    """A causal language model of a transformers family at `TINY` sizes, weights drawn from `seed`.

    Needs transformers. Gemma 3 gets one sliding and one full layer; Qwen2 and Gemma 3 tie their embeddings.

    Args:
        family: transformers' model type.
        dtype: dtype of the parameters.
        seed: of the weights.
        changes: configuration values that differ.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes: dict[str, Any] = {**TINY, "tie_word_embeddings": family in ("qwen2", "gemma3_text")}
    if family == "gemma3_text":
        layer_types = ["sliding_attention", "full_attention"]
        sizes |= {"sliding_window": 8, "query_pre_attn_scalar": 8, "layer_types": layer_types}
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**sizes, **changes}), dtype=dtype)


def random_batches(*, steps: int, rows: int, seq_length: int, vocab_size: int, seed: int = 0) -> list[Batch]:
    """Global batches of random tokens with ragged right padding, rows of 2 to `seq_length` tokens.

    Returns:
        `steps` dicts of `(rows, seq_length)` int64 `input_ids`, `attention_mask` and `labels`.
    """
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(steps):
        ids = torch.randint(0, vocab_size, (rows, seq_length), generator=generator)
        lengths = torch.randint(2, seq_length + 1, (rows, 1), generator=generator)
        mask = (torch.arange(seq_length) < lengths).long()
        ids = ids * mask
        batches.append({"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(mask == 0, IGNORED)})
    return batches


def micro_batches(batch: Batch, *, layout: Layout, rank: int, accumulation: int) -> list[Batch]:
    """This rank's micro-batches of a global batch: micro-batch j of dp rank r is block `j * dp + r`.

    Raises:
        ValueError: the rows do not divide by dp x accumulation.
    """
    rows = batch["input_ids"].shape[0]
    if rows % (layout.dp * accumulation):
        raise ValueError(f"{rows} rows do not divide by dp={layout.dp} x accumulation={accumulation}.")
    size = rows // (layout.dp * accumulation)
    starts = [(j * layout.dp + layout.coordinates(rank).dp_rank) * size for j in range(accumulation)]
    return [{key: value[start : start + size] for key, value in batch.items()} for start in starts]


def reference_run(
    model: nn.Module, batches: Sequence[Batch], *, optimizer: torch.optim.Optimizer, max_grad_norm: float | None = None
) -> Reference:
    """Train `model` on `batches`, one optimizer step each, in this process; `model` is changed in place."""
    losses, norms = [], []
    gradients: dict[str, torch.Tensor] = {}
    model.train()
    for batch in batches:
        loss = _loss(model, batch)
        loss.backward()
        gradients = gradients or {n: _gradient(p).clone() for n, p in model.named_parameters()}
        limit = torch.inf if max_grad_norm is None else max_grad_norm
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), limit)))
        losses.append(float(loss.detach()))
        optimizer.step()
        optimizer.zero_grad()
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    return Reference(losses=losses, norms=norms, gradients=gradients, weights=weights)


@dataclass(frozen=True, kw_only=True)
class EngineRun:
    """What one rank of a parallel engine computed.

    Args:
        losses: mean token loss of every step.
        norms: global gradient norm of every step, before clipping.
        gradients: `grad.<name>` -> this rank's boxes at the first step, before clipping.
        weights: `model.<name>` -> this rank's boxes after the last step.
    """

    losses: list[float]
    norms: list[float]
    gradients: dict[str, NamedTensor]
    weights: dict[str, NamedTensor]


def train_engine(
    engine: Any, batches: Sequence[Batch], *, accumulation: int, gradients: dict[str, NamedTensor]
) -> EngineRun:
    """Train an engine on this rank's share of global `batches`, one optimizer step each.

    Args:
        engine: either engine.
        batches: see `micro_batches`.
        accumulation: micro-batches per step.
        gradients: filled by the caller's hook during the first step.
    """
    mesh, losses, norms = engine.mesh, [], []
    for batch in batches:
        stats = engine.train_step(micro_batches(batch, layout=mesh.layout, rank=mesh.rank, accumulation=accumulation))
        losses.append(float(stats.loss))
        norms.append(float(stats.grad_norm))
    weights = {name: tensor for name, tensor in engine.state().items() if name.startswith("model.")}
    return EngineRun(losses=losses, norms=norms, gradients=gradients, weights=weights)


def copied(tensors: Mapping[str, NamedTensor]) -> dict[str, NamedTensor]:
    """The same boxes with values of their own, which later steps leave alone."""
    return {
        name: replace(tensor, pieces=tuple(replace(p, tensor=p.tensor.clone()) for p in tensor.pieces))
        for name, tensor in tensors.items()
    }


def worst_differences(
    expected: Mapping[str, torch.Tensor], found: Mapping[str, NamedTensor], *, prefix: str
) -> dict[str, float]:
    """How far this rank's boxes are from whole tensors: max|difference| / max|expected| per parameter.

    Args:
        expected: parameter name -> whole tensor.
        found: `<prefix><name>` -> this rank's boxes.
        prefix: `"model."` or `"grad."`.

    Raises:
        ValueError: the names differ.
    """
    names = {name.removeprefix(prefix) for name in found if name.startswith(prefix)}
    if names != set(expected):
        raise ValueError(f"parameters differ: {sorted(names ^ set(expected))[:8]}.")
    return {name: _worst(expected[name], found[f"{prefix}{name}"]) for name in expected}


def _worst(expected: torch.Tensor, found: NamedTensor) -> float:
    scale = expected.abs().max().clamp_min(torch.finfo(expected.dtype).tiny)
    worst = 0.0
    for piece in found.pieces:
        box = tuple(slice(o, o + n) for o, n in zip(piece.offsets, piece.tensor.shape, strict=True))
        worst = max(worst, float((piece.tensor.cpu().to(expected.dtype) - expected[box]).abs().max() / scale))
    return worst


def _loss(model: nn.Module, batch: Batch) -> torch.Tensor:
    """transformers' own loss; for float64, which that would cast to float32, the same formula on the logits."""
    out = model(**batch, use_cache=False)
    if out.logits.dtype != torch.float64:
        return out.loss
    return nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())


def _gradient(parameter: Any) -> torch.Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
