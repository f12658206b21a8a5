"""The learning rate as a pure function of the step, so that there is nothing to save.

The values are those of `transformers.get_scheduler` at the same step, so a run can be compared with a Hugging Face one.
"""

import math

from tp2d_train.config import SCHEDULES


def learning_rate(step: int, *, base: float, kind: str, warmup_steps: int, total_steps: int) -> float:
    """The learning rate of the optimizer step that follows `step` completed ones.

    Args:
        step: completed optimizer steps, 0 for the first step. With a warm-up the first step has rate 0, as in
            transformers.
        base: the rate at the end of the warm-up.
        kind: `constant`; `linear`, falling to 0 at `total_steps`; or `cosine`, half a period from `base` to 0.
        warmup_steps: steps of a linear rise from 0 to `base`.
        total_steps: the step at which the schedule ends; beyond it the rate stays at its last value.

    Raises:
        ValueError: an unknown `kind`.
    """
    if kind not in SCHEDULES:
        raise ValueError(f"unknown lr_scheduler {kind!r}: choose {', '.join(SCHEDULES)}")
    if step < warmup_steps:
        return base * step / warmup_steps
    if kind == "constant":
        return base
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return base * (1.0 - progress) if kind == "linear" else base * 0.5 * (1.0 + math.cos(math.pi * progress))
