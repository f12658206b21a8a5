"""The length of a run and of its epochs, as a table of cases."""

from typing import Any

import pytest
from tp2d_train.config import TrainConfig
from tp2d_train.training.length import Length
from tp2d_train.training.state import RunState


def length(*, micro_batches: int | None, **settings: Any) -> Length:
    sizes = {"tp_size": 1, "num_workers": 1, "streaming": micro_batches is None}
    return Length.of(TrainConfig(**sizes, **settings), micro_batches=micro_batches)


@pytest.mark.parametrize(
    ("micro_batches", "accumulation", "last_batch", "debug_steps", "epoch_steps"),
    [
        (7, 1, "drop", None, 7),
        (7, 2, "drop", None, 3),
        (7, 2, "pad", None, 4),
        (8, 2, "drop", None, 4),
        (8, 2, "pad", None, 4),
        (3, 4, "drop", None, 0),
        (3, 4, "pad", None, 1),
        (0, 1, "pad", None, 0),
        (7, 1, "drop", 0, 7),
        (7, 1, "drop", 5, 5),
        (7, 2, "drop", 5, 3),
        (7, 2, "pad", 4, 4),
        (3, 4, "drop", 5, 0),
    ],
)
def test_the_steps_of_an_epoch(
    micro_batches: int, accumulation: int, last_batch: str, debug_steps: int | None, epoch_steps: int
) -> None:
    settings = {"gradient_accumulation_steps": accumulation, "last_batch": last_batch, "debug_steps": debug_steps}
    assert length(micro_batches=micro_batches, **settings).epoch_steps == epoch_steps


@pytest.mark.parametrize(("debug_steps", "epoch_steps"), [(None, None), (0, None), (5, 5)])
def test_the_steps_of_a_streams_epoch_are_not_known_unless_they_are_chosen(
    debug_steps: int | None, epoch_steps: int | None
) -> None:
    assert length(micro_batches=None, max_steps=9, debug_steps=debug_steps).epoch_steps == epoch_steps


@pytest.mark.parametrize(
    ("settings", "at", "total", "left"),
    [
        ({"num_epochs": 3}, {}, 15, 5),
        ({"num_epochs": 3, "max_steps": 7}, {}, 7, 5),
        ({"num_epochs": 3, "max_steps": 99}, {}, 15, 5),
        ({"num_epochs": 3, "debug_steps": 2}, {}, 6, 2),
        ({"num_epochs": 3}, {"step": 2, "epoch_step": 2}, 15, 3),
        ({"num_epochs": 3}, {"step": 5, "epoch": 1}, 15, 5),
        ({"num_epochs": 3, "max_steps": 7}, {"step": 6, "epoch": 1, "epoch_step": 1}, 7, 1),
        ({"num_epochs": 3, "max_steps": 7}, {"step": 7, "epoch": 1, "epoch_step": 2}, 7, 0),
        ({"num_epochs": 1}, {"step": 5, "epoch": 1}, 5, 0),  # complete
        ({"num_epochs": 2}, {"step": 5, "epoch": 1}, 10, 5),  # complete, and now prolonged
        ({"num_epochs": 2, "max_steps": 3}, {"step": 5, "epoch": 1}, 3, -2),  # and now shortened
        ({"num_epochs": 2, "debug_steps": 2}, {"step": 3, "epoch_step": 3}, 4, -1),  # saved with longer epochs
    ],
)
def test_the_end_of_a_run_of_five_steps_an_epoch(
    settings: dict[str, int], at: dict[str, int], total: int, left: int
) -> None:
    """What is left of the epoch is at most what is left of the run; below 0 there is nothing to do either."""
    found, run = length(micro_batches=5, **settings), RunState(**at)
    assert found.total_steps(run) == total
    run.total_steps = total
    assert found.steps_left(run) == left


def test_a_resumed_run_ends_where_it_would_have_ended() -> None:
    """At every step of an unchanged run."""
    found = length(micro_batches=4, num_epochs=3)
    for epoch in range(3):
        for step in range(4):
            at = RunState(epoch=epoch, epoch_step=step, step=4 * epoch + step)
            assert found.total_steps(at) == 12


@pytest.mark.parametrize(("step", "total", "left"), [(0, 12, 12), (5, 12, 7), (12, 12, 0), (15, 15, 0)])
def test_a_stream_ends_with_its_steps(step: int, total: int, left: int) -> None:
    found, run = length(micro_batches=None, num_epochs=9, max_steps=12), RunState(step=step, epoch=2, epoch_step=1)
    assert found.total_steps(run) == total
    run.total_steps = total
    assert found.steps_left(run) == left


@pytest.mark.parametrize(
    ("micro_batches", "settings", "at", "whole", "complete"),
    [
        (5, {"num_epochs": 2}, {"step": 5, "epoch_step": 5}, True, False),
        (5, {"num_epochs": 2}, {"step": 3, "epoch_step": 3}, False, False),
        (5, {"num_epochs": 2}, {"step": 10, "epoch": 2}, False, True),
        (5, {"num_epochs": 2, "max_steps": 7}, {"step": 7, "epoch": 1, "epoch_step": 2}, False, True),
        (5, {"num_epochs": 2, "max_steps": 5}, {"step": 5, "epoch_step": 5}, True, True),
        (None, {"num_epochs": 9, "max_steps": 7}, {"step": 5, "epoch_step": 5}, True, False),  # it gave no more
        (None, {"num_epochs": 9, "max_steps": 7}, {"step": 7, "epoch": 1, "epoch_step": 2}, False, True),
        (None, {"num_epochs": 2, "max_steps": 70}, {"step": 7, "epoch": 2}, True, True),
    ],
)
def test_when_an_epoch_is_whole_and_a_run_complete(
    micro_batches: int | None, settings: dict[str, int], at: dict[str, int], whole: bool, complete: bool
) -> None:
    found, run = length(micro_batches=micro_batches, **settings), RunState(**at)
    run.total_steps = found.total_steps(run)
    assert (found.epoch_is_whole(run), found.is_complete(run)) == (whole, complete)
