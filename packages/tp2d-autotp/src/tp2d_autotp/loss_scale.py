"""DeepSpeed's fp16 loss scale: its state in the form that both engines' checkpoints carry, and where it ends."""

from collections.abc import Mapping
from typing import Any

LEAST = 1.0
"""The scale below which an overflow is no longer the scale's fault, as in the engine fsdp2."""


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


def stay_at_least(scaler: Any) -> None:
    """Let overflows at the least scale pass, for the caller to count; DeepSpeed raises a bare `Exception` there."""
    if scaler.dynamic:
        scaler.raise_error_at_min_scale = False


def can_fall(scaler: Any) -> bool:
    """Whether an overflow now would lower the scale, and so is no fault of the gradient."""
    return scaler.dynamic and scaler.cur_scale > max(LEAST, scaler.min_scale)
