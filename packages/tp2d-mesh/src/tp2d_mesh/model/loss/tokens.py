"""The token loss, summed, on logits whose vocabulary is split over tp; and the tokens it is summed over.

No rank gathers the logits: the log-sum-exp and the label's logit each need one number per token from the other ranks.
The result is the plain cross-entropy in at least float32, as transformers computes it.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.autograd import Function

IGNORED = -100
"""The label of a token whose loss is masked out, as everywhere in transformers."""


def shifted_labels(labels: torch.Tensor) -> torch.Tensor:
    """Labels moved one to the left, so that position t holds the token that its logits predict.

    Args:
        labels: `(batch, seq)` int64, -100 where nothing is to be predicted.

    Returns:
        `(batch, seq)` int64; the last position is -100.
    """
    return F.pad(labels, (0, 1), value=IGNORED)[:, 1:].contiguous()


class _VocabularyCrossEntropy(Function):
    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, labels: torch.Tensor, start: int, group: dist.ProcessGroup
    ) -> torch.Tensor:
        maximum = logits.max(dim=-1).values
        dist.all_reduce(maximum, dist.ReduceOp.MAX, group=group)
        exps = (logits - maximum[:, None]).exp_()
        here = (labels >= start) & (labels < start + logits.shape[-1])
        local = torch.where(here, labels - start, 0)
        own = torch.where(here, logits.gather(1, local[:, None])[:, 0] - maximum, 0.0)
        sums = torch.stack([exps.sum(dim=-1), own])
        dist.all_reduce(sums, group=group)
        counted = labels != IGNORED
        ctx.save_for_backward(exps.div_(sums[0][:, None]), local, here, counted)
        return torch.where(counted, sums[0].log() - sums[1], 0.0).sum()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        softmax, local, here, counted = ctx.saved_tensors
        out = softmax.scatter_add(1, local[:, None], -here[:, None].to(softmax.dtype))
        return out.mul_((counted * grad)[:, None]), None, None, None


def count_tokens(labels: torch.Tensor) -> torch.Tensor:
    """How many tokens of `(batch, seq)` labels are to be predicted; the first of a row has nothing before it."""
    return (labels[:, 1:] != IGNORED).sum()


def count_global_tokens(
    labels: Sequence[torch.Tensor], *, dp_group: dist.ProcessGroup
) -> tuple[torch.Tensor, torch.Tensor]:
    """The tokens to predict, and all positions, of every dp rank's micro-batches; one collective.

    Args:
        labels: `(batch, seq)` of each micro-batch; equally many on every rank.
        dp_group: the ranks that hold other rows.

    Returns:
        `(tokens, positions)`: int64 scalars, equal on every rank of the group.
    """
    tokens = torch.stack([count_tokens(one) for one in labels]).sum()
    numbers = torch.stack([tokens, tokens.new_full((), sum(one.numel() for one in labels))])
    dist.all_reduce(numbers, group=dp_group)
    return numbers[0], numbers[1]


def global_loss_sum(
    loss_sum: torch.Tensor, labels: torch.Tensor, *, dp_group: dist.ProcessGroup
) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch's summed loss and its number of tokens to predict, each summed over dp; a collective.

    Args:
        loss_sum: this dp rank's sum, a scalar.
        labels: the `(batch, seq)` labels it was summed over.
        dp_group: the ranks that hold other rows.

    Returns:
        Scalars, float64 and int64, equal on every rank of the group.
    """
    numbers = torch.stack([loss_sum.double(), count_tokens(labels).double()])
    dist.all_reduce(numbers, group=dp_group)
    return numbers[0], numbers[1].long()


def token_loss_sum(
    logits: torch.Tensor, labels: torch.Tensor, *, rows: tuple[int, int], group: dist.ProcessGroup
) -> torch.Tensor:
    """The sum of the cross-entropy over every token that is to be predicted.

    Args:
        logits: `(batch, seq, vocabulary chunk of this tp rank)`, of any float dtype.
        labels: `(batch, seq)` int64, not shifted, -100 where nothing is to be predicted.
        rows: the half-open range of the vocabulary, in rows of the output embedding, that this tp rank holds.
        group: the tp group the vocabulary is split over.

    Returns:
        A scalar in float32 (float64 for float64 logits), equal on every rank of the group.

    Raises:
        RuntimeError: the logits are not this rank's chunk: the model changes them in a way this loss does not know.
    """
    start, stop = rows
    if logits.shape[-1] != stop - start:
        raise RuntimeError(
            f"the model returned {logits.shape[-1]} logits per token where this tp rank holds rows {start} to {stop} "
            f"of the vocabulary."
        )
    wide = logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32))
    targets = shifted_labels(labels).flatten()
    if dist.get_world_size(group) == 1:
        return F.cross_entropy(wide, targets, ignore_index=IGNORED, reduction="sum")
    return _VocabularyCrossEntropy.apply(wide, targets, start, group)
