"""FSDP2 over a model's units, and what is gathered when.

Units are the input embedding, each decoder layer, and the last norm with the head; a tied embedding stays with the
head. In forward a unit's weights are gathered before it runs; those of a layer are dropped after it and gathered again
in backward. Then gradients are summed over dp and scattered. Over several micro-batches this may be done once per step.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from tp2d_mesh import Layout, Mesh, Plan, Precision
from tp2d_mesh.devices import total_memory


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """The units of a model that FSDP2 gathers and reduces.

    Args:
        root: the model; None where there is nothing to shard and nothing to cast.
        layers: the units whose weights are dropped after forward: the layers, and an embedding that is not tied.
    """

    root: FSDPModule | None
    layers: tuple[FSDPModule, ...]

    def begin(self, *, keep: bool, last: bool) -> None:
        """Before the forward of a micro-batch.

        Args:
            keep: what is gathered stays until the step's last backward, and gradients are summed over dp only there.
            last: this is the last micro-batch of its step.
        """
        if self.root is None:
            return
        self.root.set_is_last_backward(last)
        if keep:
            self.root.set_requires_gradient_sync(last)
            self.root.set_reshard_after_backward(last)
            self._drop_after_forward(False)

    def end(self, *, keep: bool) -> None:
        """After the last backward of a step."""
        if keep:
            self._drop_after_forward(True)

    def _drop_after_forward(self, drop: bool) -> None:
        for layer in self.layers:
            layer.set_reshard_after_forward(drop, recurse=False)


def shard(model: Any, *, plan: Plan, mesh: Mesh, precision: Precision) -> Sharding:
    """FSDP2 on every unit of a model, in place; nothing where one dp rank computes in its masters' dtype.

    Args:
        model: its parameters are on the meta device, DTensors on the tp axis where tp > 1.
        plan: names the layers.
        mesh: the dp x tp mesh.
        precision: dtypes of masters, compute and reduction.
    """
    if not is_sharded(mesh.layout, precision):
        return Sharding(root=None, layers=())
    policy = (
        MixedPrecisionPolicy()
        if is_uniform(precision)
        else MixedPrecisionPolicy(param_dtype=precision.compute, reduce_dtype=precision.reduce)
    )
    layers = tuple(_fsdp([model.get_submodule(name)], mesh=mesh, policy=policy, drop=True) for name in plan.layers)
    first, last = ([model.get_submodule(name) for name in names] for names in outer_units(model, plan))
    if first:
        unit = _fsdp(first, mesh=mesh, policy=policy, drop=True)
        unit.set_unshard_in_backward(False)  # its gradient does not depend on its weights
        # Nothing comes before it in backward. Without this it would gather the head of the micro-batch before.
        unit.set_modules_to_backward_prefetch([unit])
        layers = (unit, *layers)
    if last:
        _fsdp(last, mesh=mesh, policy=policy, drop=False)
    return Sharding(root=_fsdp([model], mesh=mesh, policy=policy, drop=False), layers=layers)


def is_sharded(layout: Layout, precision: Precision) -> bool:
    """Whether FSDP2 is used at all: not where one dp rank computes in its masters' dtype."""
    return layout.dp > 1 or not is_uniform(precision)


def is_uniform(precision: Precision) -> bool:
    """Whether a run has one dtype."""
    return precision.master == precision.compute == precision.reduce


def outer_units(model: Any, plan: Plan) -> tuple[list[str], list[str]]:
    """The modules of the two units beside the layers, by name.

    Args:
        model: before or after it is sharded.
        plan: names the layers.

    Returns:
        The input embedding; and what follows the layers in the module that holds them (a norm, in most models), with
        the head. A tied embedding is in the second unit, and then the first has no module.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = {module: name for name, module in model.named_modules()}
    holder, _, layers = plan.layers[0].rpartition(".")[0].rpartition(".")
    children = list(model.get_submodule(holder).named_children())
    after = children[[child for child, _ in children].index(layers) + 1 :]
    last = [names[module] for _, module in after if next(module.parameters(), None) is not None]
    last += [] if head is None else [names[head]]
    if head is not None and head.weight is embedding.weight:
        return [], [names[embedding], *last]
    return [names[embedding]], last


def _fsdp(unit: list[Any], *, mesh: Mesh, policy: MixedPrecisionPolicy, drop: bool) -> FSDPModule:
    """FSDP2 on one unit, with gradients summed over dp: the loss is already divided by the global token count."""
    modules: Any = unit if len(unit) > 1 else unit[0]
    fully_shard(modules, mesh=mesh.device_mesh["dp"], mp_policy=policy, reshard_after_forward=drop)
    sharded: FSDPModule = unit[0]
    if mesh.layout.dp > 1:  # a single rank would divide by 1.0, which copies
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)
    return sharded


def least_memory(mesh: Mesh) -> float:
    """Bytes of the device of the rank that has the least; a collective, and equal on every rank.

    All of it, not what is free: that changes from start to start.

    Args:
        mesh: the dp x tp mesh.
    """
    memory = total_memory(mesh.device, ranks=mesh.layout.world_size)
    room = torch.tensor([memory], dtype=torch.float64, device=mesh.device)
    dist.all_reduce(room, dist.ReduceOp.MIN, group=mesh.world_group)
    return float(room)
