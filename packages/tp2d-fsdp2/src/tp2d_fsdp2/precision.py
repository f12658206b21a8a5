"""Which dtype the weights, the arithmetic and the gradient reduction have, by the names a user chooses from."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.distributed.fsdp import MixedPrecisionPolicy


@dataclass(frozen=True, kw_only=True)
class Precision:
    """The dtypes of one training run.

    Args:
        master: dtype of the sharded weights and of the optimizer's moments.
        compute: dtype of the gathered weights and of the activations.
        reduce: dtype in which gradients are summed over dp, accumulated and clipped.
        loss_scaling: whether the loss needs dynamic scaling (fp16's range is too small for gradients).
    """

    master: torch.dtype
    compute: torch.dtype
    reduce: torch.dtype
    loss_scaling: bool = False

    def fsdp_policy(self) -> MixedPrecisionPolicy:
        """The FSDP2 policy that keeps masters sharded and computes in `compute`."""
        if self.master == self.compute == self.reduce:
            return MixedPrecisionPolicy()
        return MixedPrecisionPolicy(param_dtype=self.compute, reduce_dtype=self.reduce)


PRECISIONS = {
    "fp64": Precision(master=torch.float64, compute=torch.float64, reduce=torch.float64),
    "fp32": Precision(master=torch.float32, compute=torch.float32, reduce=torch.float32),
    "bf16": Precision(master=torch.float32, compute=torch.bfloat16, reduce=torch.float32),
    "bf16-pure": Precision(master=torch.bfloat16, compute=torch.bfloat16, reduce=torch.bfloat16),
    "fp16": Precision(master=torch.float32, compute=torch.float16, reduce=torch.float32, loss_scaling=True),
}
"""Every precision by name. fp64 is for checking parity; bf16-pure has no fp32 masters, so small updates round away."""


def precision_by_name(name: str) -> Precision:
    """Look a precision up.

    Raises:
        ValueError: an unknown name; the message lists the known ones.
    """
    if name not in PRECISIONS:
        raise ValueError(f"precision={name!r} is not known; choose from {', '.join(PRECISIONS)}.")
    return PRECISIONS[name]
