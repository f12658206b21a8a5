"""The steps of an epoch and of a run."""

from typing import Any

import pytest
from tp2d_data import Sharding
from tp2d_data.sampling.mixture import Mixture
from tp2d_train.config import TrainConfig
from tp2d_train.steps import epoch_steps, micro_batches_of, most_steps


def config(**settings: Any) -> TrainConfig:
    return TrainConfig(tp_size=1, dp_size=2, batch_size=3, **settings)


@pytest.mark.parametrize("last_batch", ["drop", "pad"])
@pytest.mark.parametrize("rows", [0, 1, 5, 6, 7, 11, 12, 40])
def test_micro_batches_are_those_of_the_loader(rows: int, last_batch: Any) -> None:
    sharding = Sharding(batch_size_per_gpu=3, dp_rank=1, dp_size=2, last_batch=last_batch)
    expected = len(Mixture([range(rows)], sharding=sharding))
    assert micro_batches_of(config(last_batch=last_batch), rows=rows) == expected


@pytest.mark.parametrize(
    ("micro_batches", "settings", "steps"),
    [
        (7, {}, 7),
        (7, {"gradient_accumulation_steps": 2}, 3),
        (7, {"gradient_accumulation_steps": 2, "last_batch": "pad"}, 4),
        (1, {"gradient_accumulation_steps": 2}, 0),
        (7, {"debug_steps": 5}, 5),
        (7, {"debug_steps": 9}, 7),
        (7, {"debug_steps": 0}, 7),
        (None, {}, None),
        (None, {"debug_steps": 5}, 5),
    ],
)
def test_the_steps_of_an_epoch(micro_batches: int | None, settings: dict[str, Any], steps: int | None) -> None:
    assert epoch_steps(config(**settings), micro_batches=micro_batches) == steps


@pytest.mark.parametrize(
    ("steps", "settings", "most"),
    [
        (7, {"num_epochs": 3}, 21),
        (7, {"num_epochs": 3, "max_steps": 9}, 9),
        (None, {"max_steps": 9}, 9),
        (None, {}, None),
    ],
)
def test_the_most_steps_of_a_run(steps: int | None, settings: dict[str, Any], most: int | None) -> None:
    assert most_steps(config(**settings), epoch_steps=steps) == most
