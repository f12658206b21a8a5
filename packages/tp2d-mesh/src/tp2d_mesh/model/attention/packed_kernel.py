"""Attention of packed rows on the CPU: each document by itself, as one operation that a compiler need not look into.

Torch's own CPU kernel computes each document, forward and backward, so the results are those of the document alone and
the cost is that of its own length, not of its row's. To autograd, `torch.compile` and selective recomputation it is one
operation, `tp2d::packed_attention`; where documents end is data to it, never a shape.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default

Slices = tuple[slice, slice, slice]


def band(length: int, *, window: int, device: torch.device) -> torch.Tensor:
    """Which earlier token a window leaves out: `(length, length)` bool, true `window` tokens before and further."""
    place = torch.arange(length, device=device)
    return place[:, None] - place >= window


@torch.library.custom_op("tp2d::packed_attention", mutates_args=())
def packed_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends: torch.Tensor, window: int, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal attention within each document of some rows.

    Args:
        query: `(batch, heads, seq, dim)`, on the CPU.
        key: the same shape.
        value: the same shape.
        ends: `(documents + 1,)` int32, where each document ends in the rows laid end to end, from 0 on. No document
            goes on in the next row. Equal neighbours are documents without a token.
        window: a token sees so many, itself counted; 0 is all before it.
        scale: of the scores.

    Returns:
        `(batch, seq, heads, dim)`, and the scores' log-sum-exp `(batch, heads, seq)` for backward.

    Raises:
        ValueError: `ends` does not end with the number of tokens, or a document reaches into the next row.
    """
    batch, heads, seq, dim = query.shape
    out = query.new_empty(batch, seq, heads, dim)
    sums = _empty_sums(query)
    for place in _documents(ends, batch=batch, seq=seq):
        mask = _window_mask(query, place[2], window=window)
        found, total = _forward(query[place], key[place], value[place], 0.0, True, attn_mask=mask, scale=scale)
        out.transpose(1, 2)[place] = found
        sums[place] = total
    return out, sums


@packed_attention.register_fake
def _(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, ends: torch.Tensor, window: int, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    batch, heads, seq, dim = query.shape
    return query.new_empty(batch, seq, heads, dim), _empty_sums(query)


@torch.library.custom_op("tp2d::packed_attention_backward", mutates_args=())
def _packed_attention_backward(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    sums: torch.Tensor,
    ends: torch.Tensor,
    window: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    batch, _, seq, _ = query.shape
    gradients = _dense(query), _dense(key), _dense(value)
    gradient, out = gradient.transpose(1, 2), out.transpose(1, 2)
    for place in _documents(ends, batch=batch, seq=seq):
        mask = _window_mask(query, place[2], window=window)
        given = (x[place] for x in (gradient, query, key, value, out, sums))
        found = _backward(*given, 0.0, True, attn_mask=mask, scale=scale)
        for whole, part in zip(gradients, found, strict=True):
            whole[place] = part
    return gradients


@_packed_attention_backward.register_fake
def _(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    out: torch.Tensor,
    sums: torch.Tensor,
    ends: torch.Tensor,
    window: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return _dense(query), _dense(key), _dense(value)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    query, key, value, ends, ctx.window, ctx.scale = inputs
    ctx.save_for_backward(query, key, value, *output, ends)


def _differentiate(ctx: Any, gradient: torch.Tensor, _: Any) -> tuple[torch.Tensor | None, ...]:
    found = _packed_attention_backward(gradient, *ctx.saved_tensors, ctx.window, ctx.scale)
    return *found, None, None, None


packed_attention.register_autograd(_differentiate, setup_context=_remember)


def _documents(ends: torch.Tensor, *, batch: int, seq: int) -> Iterator[Slices]:
    """Row, heads and columns of each document that has a token."""
    places: list[int] = ends.tolist()
    if places[0] != 0 or places[-1] != batch * seq:
        raise ValueError(
            f"the documents' ends go from {places[0]} to {places[-1]} where {batch} rows of {seq} tokens were given: "
            f"pass the ends of this very batch."
        )
    for start, stop in pairwise(places):
        if start == stop:
            continue
        row, column = divmod(start, seq)
        length = stop - start
        if length < 0 or column + length > seq:
            raise ValueError(f"a document from token {start} to {stop} does not lie in one row of {seq} tokens.")
        yield slice(row, row + 1), slice(None), slice(column, column + length)


def _window_mask(query: torch.Tensor, columns: slice, *, window: int) -> torch.Tensor | None:
    length = columns.stop - columns.start
    if not 0 < window < length:
        return None
    left_out = band(length, window=window, device=query.device)
    return torch.zeros(length, length, dtype=query.dtype).masked_fill(left_out, -torch.inf)


def _dense(like: torch.Tensor) -> torch.Tensor:
    return torch.empty(like.shape, dtype=like.dtype, device=like.device)


def _empty_sums(query: torch.Tensor) -> torch.Tensor:
    wide = torch.float64 if query.dtype == torch.float64 else torch.float32
    return query.new_empty(query.shape[:3], dtype=wide)


def pad_heads(*tensors: torch.Tensor, multiple: int = 1) -> list[torch.Tensor]:
    """Widen heads with zeros to the widest of `tensors`, rounded up; scores and what is attended to stay the same."""
    widest = max(x.shape[-1] for x in tensors)
    width = -(-widest // multiple) * multiple
    return [x if x.shape[-1] == width else F.pad(x, (0, width - x.shape[-1])) for x in tensors]


def ungroup(query: torch.Tensor, *tensors: torch.Tensor) -> list[torch.Tensor]:
    """Keys or values with as many heads as there are queries, each `(batch, heads, seq, dim)`."""
    return [x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in tensors]
