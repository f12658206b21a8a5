"""DeepSpeed's fp16 loss scale in the form that both engines' checkpoints carry."""

from collections.abc import Mapping
from typing import Any


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
