"""What happens between the last backward and the optimizer: partial gradients, the global norm, clipping.

Costs per step: one all-reduce over tp of the partial gradients' local shards in one buffer (none for families
without such parameters), and one all-reduce of two numbers over the world. No value is read on the host.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from tp2d_mesh import Mesh, Plan

_CHUNK = 1 << 14
"""Elements whose squares are summed in float32 at once."""


def local_gradient(parameter: nn.Parameter) -> torch.Tensor | None:
    """This rank's shard of a parameter's gradient, as a plain tensor that shares its storage."""
    grad = parameter.grad
    return grad.to_local() if isinstance(grad, DTensor) else grad


@torch.no_grad()
def sum_partial_gradients(parameters: Mapping[str, nn.Parameter], plan: Plan, mesh: Mesh) -> None:
    """Sum over tp the gradients of whole parameters that saw only this rank's heads; once per optimizer step.

    Args:
        parameters: the model's parameters by full name.
        plan: says which gradients are partial.
        mesh: the dp x tp mesh.
    """
    partial = [p for name, p in parameters.items() if plan.parameters[name].partial_gradient]
    grads = [g for g in map(local_gradient, partial) if g is not None and g.numel()]
    if mesh.layout.tp == 1 or not grads:
        return
    buffer = torch.cat([g.flatten() for g in grads])
    dist.all_reduce(buffer, group=mesh.tp_group)
    pieces = buffer.split([g.numel() for g in grads])
    torch._foreach_copy_(grads, [piece.view_as(g) for piece, g in zip(pieces, grads, strict=True)])


@torch.no_grad()
def global_norm_and_loss(
    parameters: Mapping[str, nn.Parameter], plan: Plan, mesh: Mesh, loss_sum: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The 2-norm of the whole gradient and the loss summed over dp, in one all-reduce.

    A parameter that every tp rank holds counts once, on tp rank 0; so does the loss.

    Args:
        parameters: the model's parameters by full name, gradients complete.
        plan: says which parameters are split over tp.
        mesh: the dp x tp mesh.
        loss_sum: this dp rank's summed loss, a scalar.

    Returns:
        `(norm, loss_sum)`: scalars in at least float32, equal on every rank.
    """
    first = mesh.tp_rank == 0
    counted = [p for name, p in parameters.items() if first or plan.parameters[name].tp_dim is not None]
    grads = [g for g in map(local_gradient, counted) if g is not None and g.numel()]
    numbers = torch.stack([_sum_of_squares(grads, like=loss_sum), loss_sum if first else torch.zeros_like(loss_sum)])
    dist.all_reduce(numbers, group=mesh.world_group)
    return numbers[0].sqrt(), numbers[1]


def _sum_of_squares(grads: Sequence[torch.Tensor], *, like: torch.Tensor) -> torch.Tensor:
    if not grads:
        return torch.zeros_like(like)
    parts = list(grads)
    if like.device.type == "cpu":
        # The CPU sums one after the other: in float32, 9e-5 relative are lost at 4M elements, nothing within a chunk.
        parts = [chunk for grad in grads for chunk in grad.flatten().split(_CHUNK)]
    norms = torch._foreach_norm(parts, 2, dtype=torch.promote_types(parts[0].dtype, torch.float32))
    return torch.stack(norms).double().square().sum().to(like.dtype)


def clip_factor(norm: torch.Tensor, max_norm: float) -> torch.Tensor:
    """The factor that brings gradients of norm `norm` down to `max_norm`, at most 1 (torch's own formula)."""
    return (max_norm / (norm + 1e-6)).clamp(max=1.0)
