"""What a model does to its logits between the output embedding and the loss."""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class LogitTransform:
    """What a model does to its logits after the output embedding: `soft_cap * tanh(scale * logits / soft_cap)`.

    Attributes:
        scale: a factor; 1 changes nothing.
        soft_cap: the bound of the logits; None leaves out the tanh.

    Raises:
        ValueError: a factor that is not finite, or a soft cap that is not positive.
    """

    scale: float = 1.0
    soft_cap: float | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale):
            raise ValueError(f"scale={self.scale} of the logits is not finite.")
        if self.soft_cap is not None and not 0 < self.soft_cap < math.inf:
            raise ValueError(f"soft_cap={self.soft_cap} of the logits is not a positive number; None leaves it out.")

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """The transformed logits, of the same shape and dtype."""
        return self.apply_(logits.clone())

    def apply_(self, logits: torch.Tensor) -> torch.Tensor:
        """As the call, in place."""
        if self.soft_cap is not None:
            return logits.mul_(self.scale / self.soft_cap).tanh_().mul_(self.soft_cap)
        return logits if self.scale == 1 else logits.mul_(self.scale)


UNCHANGED = LogitTransform()
