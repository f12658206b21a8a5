"""The optimizer over DTensor parameters, its moments by name, and fp16's loss scale."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

MOMENTS = {"adamw": ("exp_avg", "exp_avg_sq"), "sgd": ()}


def build_optimizer(
    name: str, parameters: Iterable[nn.Parameter], *, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """AdamW (fused) or plain SGD.

    Raises:
        ValueError: an unknown name.
    """
    if name == "adamw":
        return torch.optim.AdamW(list(parameters), lr=learning_rate, weight_decay=weight_decay, fused=True)
    if name == "sgd":
        return torch.optim.SGD(list(parameters), lr=learning_rate)
    raise ValueError(f"optimizer={name!r} is not known; choose from {', '.join(MOMENTS)}.")


def materialize_moments(optimizer: torch.optim.Optimizer) -> None:
    """Create AdamW's state as it is before its first step, where it has none yet."""
    if not isinstance(optimizer, torch.optim.AdamW):
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if not optimizer.state[parameter]:
                optimizer.state[parameter] = {
                    "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter, requires_grad=False),
                    "exp_avg_sq": torch.zeros_like(parameter, requires_grad=False),
                }


def moments(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter]
) -> dict[str, dict[str, torch.Tensor]]:
    """Moment name -> parameter name -> its tensor, for the moments the optimizer holds."""
    kinds = MOMENTS["adamw"] if isinstance(optimizer, torch.optim.AdamW) else MOMENTS["sgd"]
    return {kind: {name: optimizer.state[p][kind] for name, p in parameters.items()} for kind in kinds}


class LossScale:
    """fp16's dynamic loss scale: halved where gradients left the range, doubled after a quiet while.

    Args:
        value: the first scale.
        growth_interval: steps without overflow after which it doubles.
    """

    def __init__(self, value: float = 2.0**16, growth_interval: int = 2000) -> None:
        self.value = value
        self.used = value
        self.growth_interval = growth_interval
        self.quiet_steps = 0

    def update(self, norm: torch.Tensor) -> bool:
        """Take a step's global gradient norm; returns whether the step may be applied. Waits for the device."""
        self.used = self.value
        if not math.isfinite(norm.item()):
            self.value, self.quiet_steps = self.value / 2, 0
            return False
        self.quiet_steps += 1
        if self.quiet_steps == self.growth_interval:
            self.value, self.quiet_steps = self.value * 2, 0
        return True

    def state(self) -> dict[str, Any]:
        """JSON."""
        return {"value": self.value, "quiet_steps": self.quiet_steps}

    def load(self, state: Mapping[str, Any]) -> None:
        """The counterpart of `state`."""
        self.value, self.quiet_steps = float(state["value"]), int(state["quiet_steps"])
