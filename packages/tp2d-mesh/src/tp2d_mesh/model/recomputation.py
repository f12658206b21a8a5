"""What a decoder layer keeps for backward, and what backward computes again."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

Forward = Callable[..., Any]

_SUMS = frozenset({torch.ops._c10d_functional.all_reduce.default, torch.ops._c10d_functional.wait_tensor.default})
"""Sending again what every rank had already sent would take longer than reading it from memory."""

_PRODUCTS_AND_ATTENTION = frozenset(
    {
        "aten::mm",
        "aten::addmm",
        "aten::bmm",
        "aten::baddbmm",
        "aten::_scaled_mm",
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_efficient_attention",
        "aten::_scaled_dot_product_cudnn_attention",
        "aten::_scaled_dot_product_flash_attention_for_cpu",
        "torch_attn::_varlen_attn",
        "tp2d::packed_attention",
    }
)
"""The operations whose repetition would take most of a forward."""


def recomputed(forward: Forward, *, mode: str, has_sums: bool) -> Forward:
    """A layer's forward that keeps less for backward; the results are the same to the last bit, where kernels repeat.

    Args:
        forward: of a decoder layer.
        mode: one of `RECOMPUTATION`.
        has_sums: whether functional collectives sum over ranks in it.
    """
    if mode == "none":
        return forward
    if mode == "full" and not has_sums:
        return partial(checkpoint, forward, use_reentrant=False)
    contexts = partial(create_selective_checkpoint_contexts, _selective if mode == "selective" else _full)
    return partial(checkpoint, forward, use_reentrant=False, context_fn=contexts)


def _selective(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    kept = operation in _SUMS or operation.name().split(".")[0] in _PRODUCTS_AND_ATTENTION
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def _full(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in _SUMS else CheckpointPolicy.PREFER_RECOMPUTE
