"""Times and speeds, by a clock that the test moves: a busy machine must not decide a test."""

import pytest
import torch
from tp2d_train.report.meter import Clock, Hardware, Meter

from apps.train.tests.report.watch import Watch

CPU = torch.device("cpu")


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Watch:
    watch = Watch()
    monkeypatch.setattr("tp2d_train.report.meter.time", watch)
    return watch


def test_every_second_is_in_one_phase(time: Watch) -> None:
    clock = Clock(CPU)
    clock.carry_over({"train": 10.0, "save": 1.0})
    for phase, pause in (("setup", 2.0), ("train", 5.0), ("eval", 1.0), ("train", 5.0)):
        time.sleep(pause)
        clock.lap(phase)
    assert clock.seconds == {"setup": 2.0, "train": 20.0, "eval": 1.0, "save": 1.0}


def test_a_line_measures_the_steps_since_the_last_and_nothing_else(time: Watch) -> None:
    """Shows a rate that counts the time of an evaluation, or the tokens of all steps."""
    clock = Clock(CPU)
    meter = Meter(clock, Hardware(device=CPU), step=4, tokens=1000, positions=4000)
    time.sleep(10.0)
    first = meter.read(step=6, tokens=1300, positions=5200)
    time.sleep(10.0)
    clock.lap("eval")
    time.sleep(5.0)
    second = meter.read(step=7, tokens=torch.tensor(1400), positions=torch.tensor(5800))
    names = ("step_seconds", "tokens_per_second", "label_tokens_per_second")
    assert [first[name] for name in names] == [5.0, 120.0, 30.0]
    assert [second[name] for name in names] == [5.0, 120.0, 20.0]


def test_overall_leaves_out_the_first_step(time: Watch) -> None:
    clock = Clock(CPU)
    meter = Meter(clock, Hardware(device=CPU), step=0, tokens=0, positions=0)
    time.sleep(60.0)  # it compiles
    meter.warmed_up(step=1, tokens=100, positions=300)
    assert meter.overall(step=1, tokens=100, positions=300) == {}
    time.sleep(5.0)
    clock.lap("train")
    overall = meter.overall(step=2, tokens=200, positions=900)
    assert (overall["tokens_per_second"], overall["label_tokens_per_second"]) == (120.0, 20.0)


def test_mfu_is_of_all_positions_and_there_where_the_peak_is_known(time: Watch) -> None:
    clock = Clock(CPU)
    meter = Meter(clock, Hardware(device=CPU, flops_per_token=6.0, peak_flops=12000.0), step=0, tokens=0, positions=0)
    time.sleep(1.0)
    assert meter.read(step=1, tokens=100, positions=300)["mfu"] == pytest.approx(300 * 6 / 12000)
