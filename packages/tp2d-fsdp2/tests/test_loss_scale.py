"""fp16's loss scale."""

import torch
from tp2d_fsdp2.loss_scale import LossScale


def test_scale_halves_on_overflow_and_doubles_after_a_quiet_while() -> None:
    scale = LossScale(value=8.0, growth_interval=2)
    assert not scale.update(torch.tensor(torch.inf))
    assert (scale.used, scale.value) == (8.0, 4.0)
    assert not scale.update(torch.tensor(torch.nan))
    assert [scale.update(torch.tensor(1.0)) for _ in range(2)] == [True, True]
    assert (scale.used, scale.value) == (2.0, 4.0)


def test_scale_goes_on_from_its_state() -> None:
    scale = LossScale(value=8.0, growth_interval=2)
    scale.update(torch.tensor(1.0))
    other = LossScale(growth_interval=2)
    other.load(scale.state())
    other.update(torch.tensor(1.0))
    assert other.value == 16.0
