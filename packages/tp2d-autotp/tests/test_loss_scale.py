"""The loss scale that a checkpoint of either engine carries, on DeepSpeed's own scaler."""

from typing import Any

import pytest
from tp2d_autotp.loss_scale import can_fall, load_scale_state, scale_state, stay_at_least


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed's scaler asks for the rank to log an overflow once."""
    monkeypatch.setattr("deepspeed.comm.get_rank", lambda group=None: 0)


def scaler(window: int = 4) -> Any:
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    return DynamicLossScaler(
        init_scale=2.0**16,
        scale_window=window,
        min_scale=1,
        delayed_shift=1,
        consecutive_hysteresis=False,
    )


def test_the_scale_goes_on_where_it_was() -> None:
    """Shows a count that is off by one: the restored scaler would double a step early or late."""
    overflows = [False, True, False, False, False, True, False, False, False, False, False]
    for stop in range(len(overflows)):
        original, restored = scaler(), scaler()
        for overflow in overflows[:stop]:
            original.update_scale(overflow)
        load_scale_state(restored, scale_state(original))
        for overflow in overflows[stop:]:
            original.update_scale(overflow)
            restored.update_scale(overflow)
            assert scale_state(restored) == scale_state(original)


def test_quiet_steps_count_from_the_last_overflow() -> None:
    one = scaler()
    for overflow in (True, False, False):
        one.update_scale(overflow)
    assert scale_state(one) == {"value": 2.0**15, "quiet_steps": 2}


def test_without_dynamic_scaling_there_is_no_state() -> None:
    from deepspeed.runtime.fp16.loss_scaler import LossScaler

    static = LossScaler(scale=1.0)
    assert scale_state(static) is None
    load_scale_state(static, None)


def test_overflows_at_the_least_scale_are_told_from_those_that_lower_it() -> None:
    """DeepSpeed raises a bare `Exception` at the first overflow at its least scale; here the caller counts them."""
    one = scaler()
    one.cur_scale = 2.0
    stay_at_least(one)
    found = []
    for _ in range(3):
        found.append(can_fall(one))
        one.update_scale(True)
    assert found == [True, False, False] and one.cur_scale == 1.0
    one.min_scale, one.cur_scale = 4.0, 4.0  # fp16.min_loss_scale of a user's DeepSpeed JSON
    assert not can_fall(one)
    one.min_scale, one.cur_scale = 0.25, 1.0
    assert not can_fall(one)
