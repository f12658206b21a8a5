"""What is said of a run's length before it starts; with real data in test_check."""

from typing import Any

import pytest
from tp2d_train.config import TrainConfig
from tp2d_train.setup.length import check


def config(**settings: Any) -> TrainConfig:
    """8 rows a step."""
    return TrainConfig(tp_size=1, dp_size=2, batch_size=2, gradient_accumulation_steps=2, **settings)


def test_rows_that_do_not_fill_a_step_are_refused() -> None:
    with pytest.raises(ValueError, match=r"dataset builtin:stdlib gives 7 rows of 64 tokens, and a step takes "):
        check(config(warmup_steps=0), rows=7)
    assert check(config(warmup_steps=0), rows=8) == ()
    assert check(config(warmup_steps=0, last_batch="pad"), rows=1) == ()
    with pytest.raises(ValueError, match="gives 0 rows"):
        check(config(last_batch="pad"), rows=0)


def test_the_way_out_is_one_that_helps() -> None:
    with pytest.raises(ValueError, match="raise dataset_percentage"):
        check(config(dataset_percentage=50), rows=7)
    with pytest.raises(ValueError, match=r"lower one of these or seq_length, or fill the step up with last_batch pad$"):
        check(config(dataset_percentage=100), rows=7)


@pytest.mark.parametrize(
    ("rows", "settings", "steps"),
    [
        (80, {"warmup_steps": 10}, 10),
        (80, {"warmup_steps": 9}, None),
        (80, {"warmup_steps": 10, "num_epochs": 2}, None),
        (80, {"warmup_steps": 7, "num_epochs": 2, "debug_steps": 3}, 6),
        (80, {"warmup_steps": 7, "max_steps": 5}, 5),
        (None, {"warmup_steps": 7, "max_steps": 5}, 5),
        (None, {"warmup_steps": 7}, None),
    ],
)
def test_a_warm_up_that_the_run_never_leaves_is_said(
    rows: int | None, settings: dict[str, Any], steps: int | None
) -> None:
    warnings = check(config(**settings), rows=rows)
    assert len(warnings) == (steps is not None)
    assert not warnings or f"leaves none of the run's {steps} steps the full learning_rate 0.003" in warnings[0]
