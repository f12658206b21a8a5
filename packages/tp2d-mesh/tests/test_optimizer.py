"""The optimizer's state, before and after its first step."""

import pytest
import torch
from torch import nn
from tp2d_mesh import EngineSpec
from tp2d_mesh.model.optimizer import build_optimizer, moments, set_learning_rate, set_steps_taken, steps_taken

ADAMW = EngineSpec(learning_rate=0.1, weight_decay=0.01)
SGD = EngineSpec(optimizer="sgd", learning_rate=0.1)


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.linspace(-1, 1, 8))


def step(optimizer: torch.optim.Optimizer, tensor: nn.Parameter) -> None:
    tensor.grad = torch.ones(8)
    optimizer.step()


@pytest.mark.parametrize("grouped", [True, False])
def test_moments_before_the_first_step_change_nothing(grouped: bool) -> None:
    plain, prepared = parameter(), parameter()
    first, second = (build_optimizer(ADAMW, [{"params": [p]}] if grouped else [p]) for p in (plain, prepared))
    assert moments(ADAMW, second)["exp_avg"][0].tolist() == [0.0] * 8
    for optimizer, tensor in ((first, plain), (second, prepared)):
        step(optimizer, tensor)
    assert torch.equal(plain, prepared)
    for name, (tensor,) in moments(ADAMW, second).items():
        assert torch.equal(tensor, first.state[plain][name]), name


def test_moments_are_live() -> None:
    tensor = parameter()
    optimizer = build_optimizer(ADAMW, [tensor])
    moments(ADAMW, optimizer)["exp_avg"][0].fill_(3.0)
    assert bool((optimizer.state[tensor]["exp_avg"] == 3.0).all())


def test_sgd_has_no_moments_and_counts_no_steps() -> None:
    tensor = parameter()
    optimizer = build_optimizer(SGD, [tensor])
    step(optimizer, tensor)
    assert moments(SGD, optimizer) == {} and steps_taken(optimizer) == 0


def test_the_steps_are_counted_and_can_be_set() -> None:
    """Shows a resumed AdamW that corrects its bias as if it had just begun."""
    tensor = parameter()
    optimizer = build_optimizer(ADAMW, [tensor])
    assert steps_taken(optimizer) == 0
    step(optimizer, tensor)
    assert steps_taken(optimizer) == 1
    set_steps_taken(optimizer, 7)
    step(optimizer, tensor)
    assert steps_taken(optimizer) == 8


def test_a_learning_rate_of_zero_keeps_the_weights() -> None:
    tensor = parameter()
    optimizer = build_optimizer(SGD, [tensor])
    set_learning_rate(optimizer, 0.0)
    step(optimizer, tensor)
    assert torch.equal(tensor, parameter())
