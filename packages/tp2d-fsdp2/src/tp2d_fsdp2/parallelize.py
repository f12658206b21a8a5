"""The order of techniques, from a skeleton on the meta device to a 2D-parallel model with storage."""

from functools import partial
from typing import Any

import torch
from torch import nn
from tp2d_mesh import EngineSpec, Mesh, Plan, Precision, chunk_range
from tp2d_mesh.model.loss.chunks import give_loss
from tp2d_mesh.model.loss.heads import Head
from tp2d_mesh.model.recomputation import recomputed

from tp2d_fsdp2.collectives import TensorParallel
from tp2d_fsdp2.float8 import convert
from tp2d_fsdp2.sharding import Sharding, shard
from tp2d_fsdp2.styles import apply_styles, distribute_parameters, with_local_parameters

_GRAPHS = 64


def parallelize(
    model: Any,
    *,
    mesh: Mesh,
    plan: Plan,
    precision: Precision,
    spec: EngineSpec,
    head: Head | None = None,
    compiled: bool = False,
) -> Sharding:
    """Float8, tensor parallel and the loss; per layer recomputation and compilation; FSDP2 per unit; then storage.

    Args:
        model: a skeleton on the meta device; it is changed in place.
        mesh: the dp x tp mesh.
        plan: the model's plan at `mesh.layout.tp`.
        precision: dtypes of masters, compute and reduction.
        spec: its `float8`, `activation_checkpointing` and `compile_backend` are read.
        head: how the loss is computed in chunks, so that the model's forward returns it for `labels`. Without, and
            where this is None, it returns logits, of this tp rank's chunk of the vocabulary.
        compiled: whether each layer is compiled, as one graph.

    Returns:
        The units of FSDP2, which are told of every micro-batch.
    """
    split = mesh.layout.tp > 1
    rows = chunk_range(model.get_output_embeddings().weight.shape[0], mesh.layout.tp, mesh.tp_rank)
    if spec.float8:
        convert(model, plan=plan)
    if split:
        distribute_parameters(model, plan, mesh)
        apply_styles(model, plan, TensorParallel(mesh.tp_group))
    if head is not None:
        give_loss(model, head, rows=rows, group=mesh.tp_group)
    if split:
        _use_local_parameters_outside(model, plan)
    for name in plan.layers:
        _prepare_layer(model.get_submodule(name), split=split, spec=spec, compiled=compiled)
    sharding = shard(model, plan=plan, mesh=mesh, precision=precision)
    _allocate(model, mesh.device)
    return sharding


def _allocate(model: nn.Module, device: torch.device) -> None:
    """Undefined storage for parameters on the meta device, ties kept; buffers move."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for leaf, parameter in module._parameters.items():
            if type(parameter) is nn.Parameter and parameter.is_meta:  # FSDP2 and DTensor keep their own ties
                empty = nn.Parameter(torch.empty_like(parameter, device=device), requires_grad=parameter.requires_grad)
                module._parameters[leaf] = made.setdefault(id(parameter), empty)
    model._apply(lambda t: torch.empty_like(t, device=device) if t.is_meta else t.to(device))


def _prepare_layer(layer: Any, *, split: bool, spec: EngineSpec, compiled: bool) -> None:
    """Wrap a layer's forward in recomputation, compilation and, at tp > 1, the exchange of its parameters.

    A compiled graph takes the local parameters as inputs and may not exchange them itself, so the exchange is outside.
    Without compilation it is inside of what is recomputed: backward runs that again when the forward's exchange has
    been undone.
    """
    modules = list(layer.modules())
    forward = layer.forward
    checkpointed = partial(recomputed, mode=spec.activation_checkpointing, has_sums=split)
    if compiled:
        # Training and evaluation, packed and plain rows, and every kind of layer have a graph each.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _GRAPHS)
        forward = torch.compile(checkpointed(forward), backend=spec.compile_backend, fullgraph=True)
        layer.forward = with_local_parameters(modules, forward) if split else forward
    else:
        forward = with_local_parameters(modules, forward) if split else forward
        layer.forward = checkpointed(forward)


def _use_local_parameters_outside(model: nn.Module, plan: Plan) -> None:
    inside = {module for name in plan.layers for module in model.get_submodule(name).modules()}
    for module in model.modules():
        if module not in inside and module._parameters:
            module.forward = with_local_parameters([module], module.forward)  # type: ignore[assignment]
