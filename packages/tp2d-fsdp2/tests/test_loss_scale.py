"""fp16's loss scale."""

import torch
from tp2d_fsdp2.loss_scale import LossScale

CPU = torch.device("cpu")
OVERFLOW, FINE = torch.tensor(True), torch.tensor(False)


def updated(scale: LossScale, *overflows: torch.Tensor) -> list[bool]:
    return [bool(scale.update(overflow)) for overflow in overflows]


def test_scale_halves_on_overflow_and_doubles_after_a_quiet_while() -> None:
    scale = LossScale(device=CPU, value=8.0, growth_interval=2)
    used = scale.value
    assert updated(scale, OVERFLOW) == [False]
    assert (float(used), float(scale.value)) == (8.0, 4.0)
    assert updated(scale, FINE, OVERFLOW, FINE) == [False] * 3 and float(scale.value) == 2.0
    assert updated(scale, FINE) == [False] and float(scale.value) == 4.0


def test_overflows_at_a_scale_of_one_have_another_reason() -> None:
    """Shows a scale that falls for ever while the model is ruined."""
    scale = LossScale(device=CPU, value=2.0)
    assert updated(scale, OVERFLOW, OVERFLOW, FINE, OVERFLOW) == [False, True, False, True]
    assert float(scale.value) == 1.0


def test_scale_goes_on_from_its_state() -> None:
    scale = LossScale(device=CPU, value=8.0, growth_interval=2)
    scale.update(FINE)
    assert scale.state() == {"value": 8.0, "quiet_steps": 1}
    other = LossScale(device=CPU, growth_interval=2)
    other.load(scale.state())
    other.update(FINE)
    assert other.state() == {"value": 16.0, "quiet_steps": 0}
