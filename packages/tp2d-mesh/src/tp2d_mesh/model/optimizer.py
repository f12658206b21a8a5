"""The optimizer of both engines and what it remembers: the moments, and how many steps it has taken."""

from collections.abc import Iterable
from typing import Any

import torch

from tp2d_mesh.engine import OPTIMIZERS, EngineSpec


def build_optimizer(spec: EngineSpec, parameters: Iterable[Any]) -> torch.optim.Optimizer:
    """torch's AdamW, or plain SGD, as fused kernels: only those can leave a step out without asking the host.

    Args:
        spec: names the optimizer, the learning rate and the weight decay.
        parameters: plain tensors, or groups of them. DTensor has no rule for the fused SGD: give its local tensors.
    """
    if spec.optimizer == "sgd":
        return torch.optim.SGD(list(parameters), lr=spec.learning_rate, fused=True)
    return torch.optim.AdamW(list(parameters), lr=spec.learning_rate, weight_decay=spec.weight_decay, fused=True)


def step_unless(optimizer: torch.optim.Optimizer, bad: torch.Tensor, *, factor: torch.Tensor | None = None) -> None:
    """Take a step; where `bad` is true change nothing: no weight, no moment, not the count of steps.

    The host does not wait for `bad`, and the gradients are scaled in the pass over them that takes the step.

    Args:
        optimizer: see `build_optimizer`.
        bad: bool scalar on the device of the tensors.
        factor: scalar that the gradients are multiplied by; None: they are as they should be.
    """
    scale = None
    if factor is not None and factor.dtype == torch.float64:  # the kernels take their scale in float32
        torch._foreach_mul_([t.grad for t in stepped_tensors(optimizer) if t.grad is not None], factor)
    elif factor is not None:
        scale = 1.0 / factor
    optimizer.grad_scale = scale  # type: ignore[attr-defined] # both as GradScaler tells the fused kernels
    optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
    optimizer.step()


def stepped_tensors(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """The tensors that the optimizer steps, group by group: the parameters, or what ZeRO puts in their place."""
    return [tensor for group in optimizer.param_groups for tensor in group["params"]]


def moments(spec: EngineSpec, optimizer: torch.optim.Optimizer) -> dict[str, list[torch.Tensor]]:
    """The optimizer's moments, live. Before the first step they are created as the first step would create them.

    Returns:
        Moment name -> a tensor for each of `stepped_tensors`, of its shape.
    """
    names = OPTIMIZERS[spec.optimizer]
    tensors = stepped_tensors(optimizer)
    for tensor in tensors if names else []:
        if not optimizer.state[tensor]:
            optimizer.state[tensor] = {
                "step": torch.zeros((), dtype=torch.float32, device=tensor.device),
                **{name: torch.zeros_like(tensor, requires_grad=False) for name in names},
            }
    return {name: [optimizer.state[tensor][name] for tensor in tensors] for name in names}


def steps_taken(optimizer: torch.optim.Optimizer) -> int:
    """How many steps the optimizer counts; 0 before the first, and for one that does not count."""
    return next((int(values["step"]) for values in optimizer.state.values() if "step" in values), 0)


def set_steps_taken(optimizer: torch.optim.Optimizer, steps: int) -> None:
    """The counterpart of `steps_taken`, for an optimizer whose moments exist."""
    for values in optimizer.state.values():
        if "step" in values:
            values["step"].fill_(steps)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Use this learning rate from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
