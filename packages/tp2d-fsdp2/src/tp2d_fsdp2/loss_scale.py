"""fp16's dynamic loss scale."""

import math
from collections.abc import Mapping
from typing import Any

import torch


class LossScale:
    """fp16's dynamic loss scale: halved when a gradient overflows, doubled after many steps without an overflow.

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
