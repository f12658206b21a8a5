"""The output embedding and the token loss together, a chunk of tokens at a time: whole logits never exist.

Forward computes the logits of a chunk, their loss, and at once their gradients with respect to the hidden states and
to the head's weight, as Liger Kernel and Cut Cross-Entropy do. So no logits are kept and none are computed twice, and
the matrix products are the same three as without chunks. The vocabulary may be split over tp, as in `loss`.

Memory on one rank beside the head's weight gradient in float32, with N tokens, H hidden, V rows of the vocabulary here
and T tokens per chunk: `T * V * b + 4 * N * H` bytes in forward. The bytes of one logit, b, are 6 in bfloat16 and
float16 (itself in float32, and its gradient in the compute dtype), 4 in float32, 8 with a soft cap, and in float64 8
and 16. T is such that the first term is about `CHUNK_BYTES`, 1 GiB: 1,408 of 8,192 tokens at a vocabulary of 128,256 in
bfloat16. Backward turns the gradients from float32 into the dtype of their tensors: `2 * V * H + 6 * N * H` bytes in
bfloat16, when no logits are left. The CPU has no products with a wider result and needs temporaries for them.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from tp2d_mesh.model.loss.logits import UNCHANGED, LogitTransform
from tp2d_mesh.model.loss.tokens import IGNORED, shifted_labels

CHUNK_BYTES = 2**30
"""What the logits of one chunk, and what is computed from them in place, may take."""
_TOKENS_MULTIPLE = 128  # a whole number of the tiles that matrix products are computed in


def tokens_per_chunk(tokens: int, *, vocabulary: int, dtype: torch.dtype, transform: LogitTransform = UNCHANGED) -> int:
    """How many tokens' logits exist at a time, where nobody says otherwise.

    The chunks are as equal as multiples of 128 tokens allow; there is one if all logits fit into `CHUNK_BYTES`.

    Args:
        tokens: of the batch.
        vocabulary: the rows of the output embedding on this rank.
        dtype: of the weight.
        transform: of the logits.
    """
    chunks = math.ceil(tokens * vocabulary * logit_bytes(dtype, transform) / CHUNK_BYTES)
    even = math.ceil(tokens / max(chunks, 1) / _TOKENS_MULTIPLE) * _TOKENS_MULTIPLE
    return max(1, min(tokens, even))


def logit_bytes(dtype: torch.dtype, transform: LogitTransform = UNCHANGED) -> int:
    """The most bytes that exist for one logit of a chunk at a time: b in the module's formula."""
    wide = torch.promote_types(dtype, torch.float32).itemsize
    capped = 2 * wide if transform.soft_cap is not None else wide
    return capped if wide == dtype.itemsize else max(capped, wide + dtype.itemsize)


def head_loss_sum(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    *,
    rows: tuple[int, int],
    group: dist.ProcessGroup | None,
    vocabulary: int | None = None,
    bias: torch.Tensor | None = None,
    transform: LogitTransform = UNCHANGED,
    chunk_tokens: int | None = None,
) -> torch.Tensor:
    """The summed cross-entropy of `transform(hidden @ weight.T + bias)`; see `loss.token_loss_sum`.

    Collectives: over tp, one all-gather of three numbers per token for each chunk, and in backward one all-reduce of
    the hidden states' gradient, in the weight's dtype: the hidden states enter tp here, and nowhere else. None at tp 1.
    Gradients exist after forward, unscaled and in float32; backward multiplies them by the gradient of the loss in
    float32 and then rounds once, so that float16's loss scale reaches them before rounding, as without chunks.
    Without gradients (`torch.no_grad`) only the loss is computed.

    Args:
        hidden: `(batch, seq, hidden)`, equal on every tp rank, of any float dtype; cast to the weight's.
        weight: `(rows of the vocabulary here, hidden)`, of any float dtype.
        labels: `(batch, seq)` int64, not shifted, -100 where nothing is to be predicted.
        rows: the half-open range of the vocabulary, in rows of the output embedding, that this tp rank holds.
        group: the tp group the vocabulary is split over; None for a vocabulary that is not split.
        vocabulary: rows of the whole output embedding, from which every tp rank takes the same number of chunks; at
            tp 1, or with `chunk_tokens`, it need not be given.
        bias: `(rows of the vocabulary here,)`, of the weight's dtype.
        transform: of the logits.
        chunk_tokens: tokens per chunk, equal on every tp rank; see `tokens_per_chunk` for None.

    Returns:
        A scalar in float32 (float64 for a float64 weight), equal on every rank of the group.

    Raises:
        ValueError: the weight has other rows than `rows`, the bias another dtype, `chunk_tokens` is below 1, or
            neither it nor `vocabulary` is given where the vocabulary is split.
    """
    _check(weight, bias, rows)
    flat, targets = hidden.flatten(0, 1).to(weight.dtype), shifted_labels(labels).flatten()
    ranks = 1 if group is None else dist.get_world_size(group)
    if chunk_tokens is None:
        most = _most_rows(weight, vocabulary, ranks)
        chunk_tokens = tokens_per_chunk(len(flat), vocabulary=most, dtype=weight.dtype, transform=transform)
    if chunk_tokens < 1:
        raise ValueError(f"chunk_tokens={chunk_tokens} must be at least 1.")
    head = _Head(start=rows[0], group=None if ranks == 1 else group, transform=transform, tokens=chunk_tokens)
    loss: torch.Tensor = _HeadLoss.apply(flat, weight, bias, targets, head, torch.is_grad_enabled())
    return loss


def _check(weight: torch.Tensor, bias: torch.Tensor | None, rows: tuple[int, int]) -> None:
    if len(weight) != rows[1] - rows[0]:
        raise ValueError(
            f"The output embedding has {len(weight)} rows here, where this tp rank holds rows {rows[0]} to {rows[1]} "
            f"of the vocabulary."
        )
    if bias is not None and bias.dtype != weight.dtype:
        raise ValueError(f"A bias in {bias.dtype} does not fit an output embedding in {weight.dtype}.")


def _most_rows(weight: torch.Tensor, vocabulary: int | None, ranks: int) -> int:
    """The rows of the tp rank that has the most; another rank's count here would give it other chunks."""
    if ranks == 1:
        return len(weight)
    if vocabulary is None:
        raise ValueError(
            f"vocabulary=None: {ranks} tp ranks with different numbers of rows would choose different chunks; give the "
            f"rows of the whole output embedding, or chunk_tokens."
        )
    return math.ceil(vocabulary / ranks)


@dataclass(frozen=True, kw_only=True)
class _Head:
    """What does not change from chunk to chunk: the first row of the vocabulary here, and the tokens per chunk."""

    start: int
    group: dist.ProcessGroup | None
    transform: LogitTransform
    tokens: int


class _HeadLoss(Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        head: _Head,
        recording: bool,
    ) -> torch.Tensor:
        # Forward of a Function runs without recording, and the flags are those of the tensors, so whether the caller
        # records is an argument.
        wanted = [recording and needed for needed in ctx.needs_input_grad[:3]]
        wide = torch.promote_types(hidden.dtype, torch.float32)
        inputs = (hidden, weight, bias)
        totals = [
            torch.zeros_like(x, dtype=wide, memory_format=torch.contiguous_format) if x is not None and want else None
            for x, want in zip(inputs, wanted, strict=True)
        ]
        losses = []
        for first in range(0, len(hidden), head.tokens):
            chunk = slice(first, first + head.tokens)
            loss, gradient = _chunk(hidden[chunk], weight, bias, targets[chunk], head, gradient=any(wanted))
            losses.append(loss)
            if gradient is not None:
                _add_gradients(totals, gradient, hidden=hidden[chunk], weight=weight, chunk=chunk)
            del gradient  # before the next chunk's logits
        ctx.save_for_backward(*totals)
        ctx.head, ctx.dtype = head, weight.dtype
        return torch.cat(losses).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        factor = grad * ctx.head.transform.scale
        hidden, weight, bias = ctx.saved_tensors
        if hidden is not None:
            hidden = _scaled(hidden, factor, ctx.dtype)
            if ctx.head.group is not None:
                hidden = torch.ops._c10d_functional.all_reduce(hidden, "sum", ctx.head.group.group_name)
        # The weight's gradient is scaled while the hidden states' is under way.
        weight, bias = (None if x is None else _scaled(x, factor, ctx.dtype) for x in (weight, bias))
        if hidden is not None and ctx.head.group is not None:
            hidden = torch.ops._c10d_functional.wait_tensor(hidden)
        return hidden, weight, bias, None, None, None


def _chunk(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    head: _Head,
    *,
    gradient: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Each token's loss and the gradient of their sum with respect to the logits before the scale.

    The loss is `(T,)` in at least float32; the gradient `(T, V)`, in the dtype of the hidden states.
    """
    logits = _product(hidden, weight.t())
    if bias is not None:
        logits.add_(bias)
    head.transform.apply_(logits)
    here = (targets >= head.start) & (targets < head.start + len(weight))
    local = torch.where(here, targets - head.start, 0)[:, None]
    own = torch.where(here, logits.gather(1, local)[:, 0], 0.0)
    maximum = logits.amax(dim=-1)
    capped = None
    if gradient and head.transform.soft_cap is not None:
        exps = (logits - maximum[:, None]).exp_()
        capped = logits.div_(head.transform.soft_cap).square_()
    else:
        exps = logits.sub_(maximum[:, None]).exp_()
    top, total, own = _over_tp(maximum, exps.sum(dim=-1), own, head.group)
    counted = targets != IGNORED
    losses = torch.where(counted, total.log() - (own - top), 0.0)
    if not gradient:
        return losses, None
    factor = (maximum - top).exp_() / total * counted
    # The label's entry is computed apart: near 0, it would be lost by rounding the softmax before 1 is taken off.
    label = exps.gather(1, local) * factor[:, None] - (here & counted)[:, None].to(factor.dtype)
    if capped is not None:
        label *= 1 - capped.gather(1, local)
        exps.addcmul_(exps, capped, value=-1)
        del capped, logits
    return losses, _scaled(exps, factor[:, None], hidden.dtype).scatter_(1, local, label.to(hidden.dtype))


def _over_tp(
    maximum: torch.Tensor, total: torch.Tensor, own: torch.Tensor, group: dist.ProcessGroup | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The largest logit of every rank's, the sum of exponentials below it, and the label's logit; `(T,)` each."""
    if group is None:
        return maximum, total, own
    numbers = torch.stack([maximum, total, own])
    gathered = torch.ops._c10d_functional.all_gather_into_tensor(numbers, dist.get_world_size(group), group.group_name)
    maxima, totals, owns = torch.ops._c10d_functional.wait_tensor(gathered).unflatten(0, (-1, 3)).unbind(1)
    top = maxima.amax(dim=0)
    return top, (totals * (maxima - top).exp_()).sum(dim=0), owns.sum(dim=0)


def _add_gradients(
    totals: list[torch.Tensor | None],
    gradient: torch.Tensor,
    *,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    chunk: slice,
) -> None:
    """A chunk's part of the gradients of the hidden states, the weight and the bias."""
    for_hidden, for_weight, for_bias = totals
    if for_hidden is not None:
        _product(gradient, weight, out=for_hidden[chunk])
    if for_bias is not None:
        for_bias += gradient.sum(dim=0, dtype=for_bias.dtype)
    if for_weight is not None:
        _add_product(for_weight, gradient.t(), hidden)


def _product(a: torch.Tensor, b: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """`a @ b` in at least float32, written to `out` if it is given."""
    wide = torch.promote_types(a.dtype, torch.float32)
    if a.device.type == "cpu" and a.dtype == torch.float16:
        a, b = a.to(wide), b.to(wide)  # float16 would lose what the loss scale has not reached yet
    if wide == a.dtype:
        return torch.mm(a, b, out=out)
    if a.device.type == "cpu":  # which has no product with a wider result
        return (a @ b).to(wide) if out is None else out.copy_(a @ b)
    return torch.mm(a, b, out_dtype=wide, out=out)


def _add_product(total: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """`total += a @ b`; on a GPU without a temporary of the size of `total`."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
    elif a.device.type == "cpu":
        total.add_(a @ b)
    else:
        torch.addmm(total, a, b, out_dtype=total.dtype, out=total)


def _scaled(x: torch.Tensor, factor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`x * factor` in `dtype`: in place if it is the tensor's, or else rounded in the same pass."""
    if x.dtype == dtype:
        return x.mul_(factor)
    return torch.mul(x, factor, out=torch.empty_like(x, dtype=dtype))
