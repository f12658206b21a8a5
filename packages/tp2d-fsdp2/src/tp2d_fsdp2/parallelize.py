"""The order of techniques, from a skeleton on the meta device to a 2D-parallel model with storage."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint
from tp2d_mesh import Mesh, Plan

from tp2d_fsdp2.collectives import TensorParallel
from tp2d_fsdp2.precision import Precision
from tp2d_fsdp2.styles import apply_styles, distribute_parameters


def parallelize(
    model: nn.Module,
    *,
    mesh: Mesh,
    plan: Plan,
    precision: Precision,
    activation_checkpointing: bool = False,
    compile: bool = False,
) -> TensorParallel:
    """Tensor parallel, then per layer: compile, checkpoint; then FSDP2 per layer and root; then storage.

    Args:
        model: a skeleton on the meta device; it is changed in place.
        mesh: the dp x tp mesh; every parameter ends as a DTensor on it.
        plan: the model's plan at ``mesh.layout.tp``.
        precision: dtypes of masters, compute and reduction.
        activation_checkpointing: recompute each layer in backward in place of keeping its activations.
        compile: run ``torch.compile`` on each layer.

    Returns:
        The crossings of the tp group, which the loss and the engine also use.
    """
    tp = TensorParallel(mesh.tp_group)
    distribute_parameters(model, plan, mesh)
    apply_styles(model, plan, tp)
    for name in plan.layers:
        layer = model.get_submodule(name)
        if compile:
            layer.forward = torch.compile(layer.forward)
        if activation_checkpointing:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)  # type: ignore[assignment]
    options = {"mesh": mesh.device_mesh["dp"], "mp_policy": precision.fsdp_policy()}
    for name in plan.layers:
        _shard(model.get_submodule(name), **options)
    _shard(model, **options)
    model._apply(lambda t: torch.empty_like(t, device=mesh.device) if t.is_meta else t.to(mesh.device))
    return tp


def _shard(module: nn.Module, **options: object) -> None:
    """FSDP2 on one unit, with gradients summed over dp: the loss is already divided by the global token count."""
    sharded = fully_shard(module, **options)  # type: ignore[call-overload]
    sharded.set_gradient_divide_factor(1.0)
    sharded.set_force_sum_reduction_for_comms(True)
