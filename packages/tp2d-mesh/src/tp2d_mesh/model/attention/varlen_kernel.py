"""Attention of packed rows on a GPU: torch's variable length attention over the rows laid end to end.

Importing this loads torch's compiler, so only what calls it imports it.
"""

from inspect import signature
from typing import Any

import torch
from torch.nn.attention import varlen

from tp2d_mesh.model.attention.packed_kernel import pad_heads, ungroup

_GROUPED = "enable_gqa" in signature(varlen.varlen_attn).parameters  # torch 2.11 does not have it
_MULTIPLE = 8  # of it heads are wide


def by_length(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    ends: torch.Tensor,
    longest: int,
    window: int,
    scale: float,
) -> torch.Tensor:
    """Causal attention within each document.

    Args:
        query: `(batch, heads, seq, dim)`, bf16 or fp16.
        key: `(batch, kv heads, seq, dim)`.
        value: `(batch, kv heads, seq, value dim)`.
        ends: `(documents + 1,)` int32, where each document ends in the rows laid end to end, from 0 on.
        longest: no document has more tokens. The kernel starts as many blocks for every document and head as the
            longest has tokens for, so a row's length in its place would cost where documents are short.
        window: a token sees so many, itself counted; 0 is all before it.
        scale: of the scores.

    Returns:
        `(batch, seq, heads, the wider dim rounded up to 8)`; what is beyond the value's dim is zero.
    """
    grouped = query.shape[1] != key.shape[1]
    if grouped and not _GROUPED:
        key, value = ungroup(query, key, value)
    options = {"enable_gqa": True} if grouped and _GROUPED else {}
    tokens = [x.transpose(1, 2).flatten(0, 1) for x in pad_heads(query, key, value, multiple=_MULTIPLE)]
    sees = (window - 1 if window else -1, 0)
    attend: Any = varlen.varlen_attn  # its signature is another in each torch
    out: torch.Tensor = attend(*tokens, ends, ends, longest, longest, scale=scale, window_size=sees, **options)
    return out.unflatten(0, (query.shape[0], query.shape[2]))
