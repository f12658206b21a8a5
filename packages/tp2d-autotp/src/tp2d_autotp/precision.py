"""Which dtypes a run has, by the names a user chooses from, and the sections that tell DeepSpeed so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

# Gradients are accumulated over micro-batches and summed over dp in fp32; DeepSpeed's own default is the model's dtype.
_FP32_GRADIENTS = {"data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"}


@dataclass(frozen=True, kw_only=True)
class Precision:
    """The dtypes of one training run.

    Args:
        master: dtype in which weights are drawn, stored and stepped. (DeepSpeed steps fp64 weights in fp32.)
        compute: dtype of the weights that forward and backward see, and of the activations.
        sections: what DeepSpeed's configuration says about it.
    """

    master: torch.dtype
    compute: torch.dtype
    sections: Mapping[str, Any] = field(default_factory=dict)


PRECISIONS = {
    "fp64": Precision(master=torch.float64, compute=torch.float64),
    "fp32": Precision(master=torch.float32, compute=torch.float32),
    "bf16": Precision(
        master=torch.float32, compute=torch.bfloat16, sections={"bf16": {"enabled": True}, **_FP32_GRADIENTS}
    ),
    "bf16-pure": Precision(
        master=torch.bfloat16,
        compute=torch.bfloat16,
        sections={"bf16": {"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}},
    ),
    "fp16": Precision(
        master=torch.float32,
        compute=torch.float16,
        # DeepSpeed's tolerance of a second overflow (hysteresis) is a count that no checkpoint of another engine has.
        sections={"fp16": {"enabled": True, "loss_scale": 0, "hysteresis": 1}, **_FP32_GRADIENTS},
    ),
}
"""Every precision by name. fp64 is for checking parity; bf16-pure has no fp32 masters, so small updates round away."""
