"""Skipped steps and spikes of the loss, as a run counts them."""

import math

import pytest
import torch
from tp2d_mesh import StepStats
from tp2d_train.config import TrainConfig
from tp2d_train.training.health import LEAST, WINDOW, Alarm, Health


def stats(loss: float, *, skipped: bool = False) -> StepStats:
    norm = torch.tensor(math.nan if skipped else 1.0)
    count = torch.tensor(8)
    return StepStats(
        loss=torch.tensor(loss), grad_norm=norm, tokens=count, positions=count, skipped=torch.tensor(skipped)
    )


def observe(health: Health, losses: list[float], *, skipped: tuple[int, ...] = (), first: int = 1) -> Health:
    for step, loss in enumerate(losses, start=first):
        health.observe(step, stats(loss, skipped=step in skipped))
    return health


def noise(count: int, *, around: float) -> list[float]:
    """Losses that vary by a standard deviation of about 0.1."""
    return (around + 0.1 * torch.randn(count, generator=torch.Generator().manual_seed(1))).tolist()


def config(**settings: object) -> TrainConfig:
    return TrainConfig(tp_size=1, num_workers=1, **settings)


def test_skipped_steps_are_counted_and_said() -> None:
    health = observe(Health(), [3.0, 2.0, math.nan, 6.24, 2.5], skipped=(3, 4))
    assert (health.skipped, health.in_a_row, health.skipped_from, health.trouble_at) == (2, 0, 3, 3)
    assert health.last_loss == 2.5
    assert health.notices() == [
        ("skipped", 3, "step 3 was skipped: its gradient is not finite"),
        ("skipped", 4, "step 4 was skipped, 2 in a row: its gradient is not finite"),
    ]
    assert health.notices() == []


def test_a_row_of_skipped_steps_is_an_alarm_even_if_it_is_seen_late() -> None:
    """Shows a row that is forgotten because a good step came before the host has looked."""
    health = observe(Health(), [2.0, math.nan, math.nan, 2.0], skipped=(2, 3))
    assert health.alarm(config(max_skipped_steps=3)) is Alarm.NONE
    assert health.alarm(config(max_skipped_steps=2)) is Alarm.SKIPPED
    assert health.describe(Alarm.SKIPPED) == (
        "2 steps in a row were skipped, from step 2 on, because the gradient is not finite; the last loss was 2."
    )


def test_the_loss_of_a_skipped_step_is_no_loss_of_the_run() -> None:
    """It may look sound: a tiny Qwen2 after a step at rate 1e12 has the loss 6.24 and gradients that are NaN."""
    health = observe(Health(), [2.0, 6.24], skipped=(2,))
    assert health.last_loss == 2.0 and health.losses == [2.0]


def test_a_spike_is_far_above_the_median_and_is_said_once() -> None:
    health = observe(Health(), [*noise(40, around=4.0), 5.2, 5.3, 4.0, 5.2])
    kinds = [(kind, step) for kind, step, _ in health.notices()]
    assert kinds == [("spike", 41), ("spike", 44)]
    assert health.trouble_at == 41
    assert health.alarm(config()) is Alarm.NONE
    assert health.alarm(config(on_spike="stop")) is Alarm.SPIKE
    assert "the loss 5.2 of step 44 is a spike, the median of the 43 before is " in health.describe(Alarm.SPIKE)


@pytest.mark.parametrize(
    "losses",
    [
        pytest.param([8.0 - 0.05 * at for at in range(100)], id="a loss that falls"),
        pytest.param(noise(500, around=4.0), id="noise"),
        pytest.param([2.0] * 30 + [2.1] * 30, id="hardly any variation"),
        pytest.param([2.0] * (LEAST - 1) + [9.0], id="too few steps to know"),
        pytest.param([2.0] * 30 + [math.nan] * 3 + [2.0] * 9, id="steps without a label"),
    ],
)
def test_what_is_no_spike(losses: list[float]) -> None:
    assert observe(Health(), losses).notices() == []


def test_a_new_level_becomes_usual() -> None:
    """Shows a window that never takes in what it calls a spike, so that the warning never ends."""
    health = observe(Health(), [*noise(WINDOW, around=2.0), *noise(WINDOW, around=4.0)])
    assert [kind for kind, *_ in health.notices()] == ["spike"]
    assert not health.spiking


def test_the_state_goes_on_where_it_was() -> None:
    losses = [*noise(30, around=4.0), math.nan, 9.0, *noise(10, around=4.0), 9.0]
    whole = observe(Health(), losses, skipped=(31,))
    half = observe(Health(), losses[:35], skipped=(31,))
    resumed = observe(Health.from_dict(half.as_dict()), losses[35:], first=36)
    assert resumed == whole
    assert resumed.notices() == whole.notices()[-1:]


def test_an_alarm_of_an_earlier_start_is_not_raised_again() -> None:
    """A run that was resumed on purpose, past its spike, goes on."""
    health = observe(Health(), [*[2.0] * 20, 9.0, 2.0, math.nan, 2.0], skipped=(23,))
    resumed = Health.from_dict(health.as_dict())
    assert resumed.alarm(config(on_spike="stop", max_skipped_steps=1)) is Alarm.NONE
