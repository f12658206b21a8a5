"""The optimizer's state, before and after its first step."""

import pytest
import torch
from torch import nn
from tp2d_mesh import EngineSpec
from tp2d_mesh.model.optimizer import (
    build_optimizer,
    moments,
    set_learning_rate,
    set_steps_taken,
    step_unless,
    steps_taken,
)

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


@pytest.mark.parametrize("spec", [ADAMW, SGD], ids=["adamw", "sgd"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_step_that_is_left_out_changes_nothing_and_the_next_is_as_if_it_had_not_been(
    spec: EngineSpec, dtype: torch.dtype
) -> None:
    """Shows NaN that reaches a weight or a moment, a decayed weight, and a step that is counted for the bias."""
    plain, tensor = (nn.Parameter(torch.linspace(-1, 1, 40, dtype=dtype)) for _ in range(2))
    first, second = build_optimizer(spec, [plain]), build_optimizer(spec, [tensor])
    for bad in (True, False, True, True, False):
        tensor.grad = torch.full((40,), torch.nan if bad else 1.0, dtype=dtype)
        step_unless(second, torch.tensor(bad))
        if not bad:
            plain.grad = torch.ones(40, dtype=dtype)
            first.step()
        assert torch.equal(plain, tensor)
    assert steps_taken(first) == steps_taken(second)
    for name, (moment,) in moments(spec, second).items():
        assert torch.equal(moment, first.state[plain][name]), name


def test_a_learning_rate_of_zero_keeps_the_weights() -> None:
    tensor = parameter()
    optimizer = build_optimizer(SGD, [tensor])
    set_learning_rate(optimizer, 0.0)
    step(optimizer, tensor)
    assert torch.equal(tensor, parameter())


@pytest.mark.parametrize("spec", [ADAMW, SGD], ids=["adamw", "sgd"])
@pytest.mark.parametrize(("dtype", "rel"), [(torch.float32, 1e-6), (torch.float64, 1e-14)], ids=str)
def test_a_factor_scales_the_gradients_of_one_step(spec: EngineSpec, dtype: torch.dtype, rel: float) -> None:
    """Shows a scale that is applied the wrong way round, in float32 only, or still in the step after."""
    scaled, plain = (nn.Parameter(torch.linspace(-1, 1, 40, dtype=dtype)) for _ in range(2))
    first, second = build_optimizer(spec, [scaled]), build_optimizer(spec, [plain])
    for gradient, factor in ((3.0, 0.3), (-1.0, None), (2.0, 0.7)):
        scaled.grad = torch.linspace(1, 2, 40, dtype=dtype) * gradient
        plain.grad = scaled.grad * (1.0 if factor is None else factor)
        good = torch.tensor(False)
        step_unless(first, good, factor=None if factor is None else torch.tensor(factor, dtype=dtype))
        step_unless(second, good)
    torch.testing.assert_close(scaled, plain, rtol=rel, atol=rel)
