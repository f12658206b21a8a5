"""The counters of a run, on the device and back."""

import json
import math

import torch
from tp2d_mesh import StepStats
from tp2d_train.training.state import RunState


def stats(loss: float, tokens: int, *, skipped: bool = False) -> StepStats:
    return StepStats(
        loss=torch.tensor(loss),
        grad_norm=torch.tensor(math.nan if skipped else 1.0),
        tokens=torch.tensor(tokens),
        positions=torch.tensor(2 * tokens),
        skipped=torch.tensor(skipped),
    )


def test_the_epochs_loss_weighs_tokens_in_float64() -> None:
    run = RunState()
    for loss, tokens in ((2.0, 10), (4.0, 30)):
        run.add(stats(loss, tokens))
    assert run.epoch_loss() == 3.5
    run.end_epoch()
    assert (run.epoch, run.epoch_step, run.epoch_loss(), run.mean_loss, run.step) == (1, 0, None, 3.5, 2)


def test_a_state_goes_through_json_and_on_bit_for_bit() -> None:
    """A float32 sum or a rounded text would show in the epoch's loss of a resumed run."""
    losses = [(math.pi / n, 7 * n) for n in range(1, 9)]
    whole, first = RunState(), RunState()
    for loss in losses:
        whole.add(stats(*loss))
    for loss in losses[:3]:
        first.add(stats(*loss))
    first.add_evaluation(1 / 3)
    second = RunState.from_dict(json.loads(json.dumps(first.as_dict())))
    assert second == RunState.from_dict(first.as_dict())
    for loss in losses[3:]:
        second.add(stats(*loss))
    whole.evaluated_at, whole.eval_loss, whole.best_eval_loss = 3, 1 / 3, 1 / 3
    assert second.as_dict() == whole.as_dict()


def test_the_best_is_the_lowest_and_survives_a_nan() -> None:
    run = RunState()
    for loss in (3.0, math.nan, 2.0, 4.0):
        run.add(stats(loss, 1))
    assert run.as_dict()["best_loss"] == 2.0 and run.as_dict()["last_loss"] == 4.0
    for loss in (5.0, 4.0, 6.0):
        run.add_evaluation(loss)
    assert (run.eval_loss, run.best_eval_loss, run.evaluated_at) == (6.0, 4.0, 4)


def test_a_step_without_a_label_adds_nothing() -> None:
    run = RunState()
    run.add(stats(2.0, 10))
    run.add(stats(math.nan, 0))
    assert run.epoch_loss() == 2.0 and float(run.best_loss) == 2.0 and run.step == 2  # type: ignore[arg-type]


def test_a_skipped_step_uses_up_its_batch_and_adds_no_loss() -> None:
    """Its loss may be NaN, or look better than any before."""
    run = RunState()
    for loss, skipped in ((2.0, False), (math.nan, True), (1.0, True), (4.0, False), (0.5, True)):
        run.add(stats(loss, 10, skipped=skipped))
    assert run.epoch_loss() == 3.0
    values = run.as_dict()
    assert (values["step"], values["tokens"], values["positions"]) == (5, 50, 100)
    assert (values["last_loss"], values["best_loss"], values["health"]["skipped"]) == (4.0, 2.0, 3)


def test_a_state_of_an_older_version_is_taken() -> None:
    """It knew no positions and no skipped steps."""
    values = RunState(step=7, tokens=70).as_dict()
    del values["health"], values["positions"]
    assert RunState.from_dict(values) == RunState(step=7, tokens=70)
