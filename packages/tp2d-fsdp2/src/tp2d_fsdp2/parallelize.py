"""The order of techniques, from a skeleton on the meta device to a 2D-parallel model with storage."""

from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint
from tp2d_mesh import EngineSpec, Mesh, Plan, Precision

from tp2d_fsdp2.collectives import TensorParallel
from tp2d_fsdp2.precision import fsdp_policy
from tp2d_fsdp2.styles import apply_styles, distribute_parameters


def parallelize(
    model: nn.Module,
    *,
    mesh: Mesh,
    plan: Plan,
    precision: Precision,
    spec: EngineSpec,
) -> TensorParallel:
    """Tensor parallel, then per layer: compile, checkpoint; then FSDP2 per layer and root; then storage.

    Args:
        model: a skeleton on the meta device; it is changed in place.
        mesh: the dp x tp mesh; every parameter ends as a DTensor on it.
        plan: the model's plan at `mesh.layout.tp`.
        precision: dtypes of masters, compute and reduction.
        spec: its `activation_checkpointing` and `compile` are read.

    Returns:
        The crossings of the tp group, which the engine clears after each step.
    """
    tp = TensorParallel(mesh.tp_group)
    distribute_parameters(model, plan, mesh)
    apply_styles(model, plan, tp)
    for name in plan.layers:
        layer = model.get_submodule(name)
        if spec.compile:
            layer.forward = torch.compile(layer.forward)
        if spec.activation_checkpointing:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)  # type: ignore[assignment]
    policy = fsdp_policy(precision)
    for unit in (*map(model.get_submodule, plan.layers), model):
        _shard(unit, mesh=mesh, policy=policy)
    model._apply(lambda t: torch.empty_like(t, device=mesh.device) if t.is_meta else t.to(mesh.device))
    return tp


def _shard(module: nn.Module, *, mesh: Mesh, policy: MixedPrecisionPolicy) -> None:
    """FSDP2 on one unit, with gradients summed over dp: the loss is already divided by the global token count."""
    sharded: Any = fully_shard(module, mesh=mesh.device_mesh["dp"], mp_policy=policy)
    sharded.set_gradient_divide_factor(1.0)
    sharded.set_force_sum_reduction_for_comms(True)
