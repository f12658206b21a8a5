"""The optimizer over ZeRO's flat partitions, and fp16's loss scale in the words both engines use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

OPTIMIZERS = ("adamw", "sgd")


def build_optimizer(
    name: str, groups: list[dict[str, Any]], *, learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    """torch's AdamW (fused) or plain SGD; DeepSpeed's own would be compiled first.

    Raises:
        ValueError: an unknown name.
    """
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=learning_rate, weight_decay=weight_decay, fused=True)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=learning_rate)
    raise ValueError(f"optimizer={name!r} is not known; choose from {', '.join(OPTIMIZERS)}.")


def partitions(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """The flat tensors ZeRO put in the place of each group's parameters."""
    return [group["params"][0] for group in optimizer.param_groups]


def moments(optimizer: torch.optim.Optimizer) -> dict[str, list[torch.Tensor]]:
    """Moment name -> a flat tensor for each group; as before the first step where the optimizer has made none yet."""
    if not isinstance(optimizer, torch.optim.AdamW):
        return {}
    flats = partitions(optimizer)
    for flat in flats:
        if not optimizer.state[flat]:
            optimizer.state[flat] = {
                "step": torch.zeros((), dtype=torch.float32, device=flat.device),
                "exp_avg": torch.zeros_like(flat, requires_grad=False),
                "exp_avg_sq": torch.zeros_like(flat, requires_grad=False),
            }
    return {kind: [optimizer.state[flat][kind] for flat in flats] for kind in ("exp_avg", "exp_avg_sq")}


def scale_state(scaler: Any) -> dict[str, Any] | None:
    """The loss scale, and for how many steps no gradient has left the range; None without dynamic scaling."""
    if not scaler.dynamic:
        return None
    return {"value": float(scaler.cur_scale), "quiet_steps": scaler.cur_iter - scaler.last_overflow_iter - 1}


def load_scale_state(scaler: Any, state: Mapping[str, Any] | None) -> None:
    """The counterpart of `scale_state`."""
    if scaler.dynamic and state is not None:
        scaler.cur_scale = float(state["value"])
        scaler.last_overflow_iter = scaler.cur_iter - int(state["quiet_steps"]) - 1
