"""fp16's dynamic loss scale, kept on the device so that no step waits for it."""

from collections.abc import Mapping
from typing import Any

import torch

LEAST = 1.0
"""The scale that overflows do not lower any further."""


class LossScale:
    """fp16's dynamic loss scale: halved when a gradient overflows, doubled after many steps without an overflow.

    Args:
        device: where the steps compute.
        value: the first scale.
        growth_interval: steps without overflow after which it doubles.

    Attributes:
        value: the scale of the next step, a float32 scalar; `update` replaces it and leaves the old tensor as it is.
    """

    def __init__(self, *, device: torch.device, value: float = 2.0**16, growth_interval: int = 2000) -> None:
        self.value = torch.full((), value, device=device)
        self.growth_interval = growth_interval
        self.quiet_steps = torch.zeros((), dtype=torch.int64, device=device)

    def update(self, overflow: torch.Tensor) -> torch.Tensor:
        """Take whether a step's gradient was not finite.

        Args:
            overflow: bool scalar on the device.

        Returns:
            Bool scalar: it was not finite at the least scale, so that the scale is no explanation.
        """
        unexplained = overflow & (self.value <= LEAST)
        quiet = torch.where(overflow, 0, self.quiet_steps + 1)
        grows = quiet == self.growth_interval
        calm = torch.where(grows, self.value * 2, self.value)
        self.value = torch.where(overflow, (self.value / 2).clamp(min=LEAST), calm)
        self.quiet_steps = torch.where(grows, 0, quiet)
        return unexplained

    def state(self) -> dict[str, Any]:
        """JSON. Waits for the device."""
        return {"value": self.value.item(), "quiet_steps": int(self.quiet_steps)}

    def load(self, state: Mapping[str, Any]) -> None:
        """The counterpart of `state`."""
        self.value.fill_(float(state["value"]))
        self.quiet_steps.fill_(int(state["quiet_steps"]))
