"""The token loss, summed, on the logits of this tp rank: all of them, or its part of the vocabulary."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F

IGNORED = -100


def count_tokens(labels: torch.Tensor) -> torch.Tensor:
    """How many tokens of ``(batch, seq)`` labels are to be predicted; the first of a row has nothing before it."""
    return (labels[:, 1:] != IGNORED).sum()


def token_loss_sum(logits: torch.Tensor, labels: torch.Tensor, *, head: Any, group: dist.ProcessGroup) -> torch.Tensor:
    """The sum of the cross-entropy over every token that is to be predicted.

    Args:
        logits: ``(batch, seq, vocabulary of this tp rank)``, of any float dtype.
        labels: ``(batch, seq)`` int64, not shifted, -100 where nothing is to be predicted.
        head: the output embedding; where it is split it knows which rows of the vocabulary it holds.
        group: the tp group.

    Returns:
        A scalar, equal on every rank of the group.
    """
    targets = F.pad(labels, (0, 1), value=IGNORED)[:, 1:].contiguous()
    if dist.get_world_size(group) == 1:
        wide = logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(wide, targets.flatten(), ignore_index=IGNORED, reduction="sum")
    from deepspeed.sequence.cross_entropy import vocab_parallel_cross_entropy

    return vocab_parallel_cross_entropy(
        logits,
        targets,
        tp_group=group,
        vocab_start_index=head.vocab_start_index,
        vocab_end_index=head.vocab_end_index,
        global_vocab_size=head.vocab_size,
        ignore_index=IGNORED,
        reduction="sum",
    )
