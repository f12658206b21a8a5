"""The schedule against transformers' own, which is what a tutorial's user compares with."""

import pytest
import torch
from tp2d_train.training.schedule import learning_rate
from transformers import get_scheduler

NAMES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


def hugging_face_rates(kind: str, *, base: float, warmup_steps: int, total_steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=base)
    scheduler = get_scheduler(NAMES[kind], optimizer, num_warmup_steps=warmup_steps, num_training_steps=total_steps)
    rates = []
    for _ in range(total_steps):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize(("warmup_steps", "total_steps"), [(0, 1), (0, 7), (3, 20), (10, 10), (15, 10)])
def test_values_are_those_of_transformers(kind: str, warmup_steps: int, total_steps: int) -> None:
    """Shows an off-by-one in the warm-up or the decay, and total steps counted from the wrong end."""
    expected = hugging_face_rates(kind, base=3e-3, warmup_steps=warmup_steps, total_steps=total_steps)
    ours = [
        learning_rate(step, base=3e-3, kind=kind, warmup_steps=warmup_steps, total_steps=total_steps)
        for step in range(total_steps)
    ]
    assert ours == pytest.approx(expected, abs=1e-15)


def test_beyond_the_total_steps_the_rate_stays_at_its_end() -> None:
    """A cosine left unclamped would rise again."""
    for kind, end in (("linear", 0.0), ("cosine", 0.0), ("constant", 1.0)):
        assert learning_rate(30, base=1.0, kind=kind, warmup_steps=2, total_steps=20) == pytest.approx(end)


def test_unknown_kind_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown lr_scheduler 'polynomial': choose constant, linear, cosine"):
        learning_rate(0, base=1.0, kind="polynomial", warmup_steps=0, total_steps=1)
