"""What both engines give back from an optimizer step."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class StepStats:
    """What one optimizer step did; scalar tensors on the device, so reading one waits for the step.

    Args:
        loss: mean over all unmasked tokens of the global batch.
        grad_norm: global 2-norm of the gradient before clipping; not finite where the step was skipped because a
            gradient was not.
        tokens: number of those tokens, each counted once.
    """

    loss: torch.Tensor
    grad_norm: torch.Tensor
    tokens: torch.Tensor
