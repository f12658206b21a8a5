"""What one tp rank computes, run alone: the engine's own tensor parallelism over a group that sends nothing.

The group is known to nobody else: no default process group is needed, and one that exists is left alone.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from tp2d_mesh import EngineSpec, Layout, Plan, Precision, chunk_range, plan_model
from tp2d_mesh.cost.layers import with_layers
from tp2d_mesh.model.recomputation import recomputed

from tp2d_fsdp2.collectives import TensorParallel
from tp2d_fsdp2.styles import apply_styles
from tp2d_fsdp2.traffic import local_shape


def lone_group(ranks: int) -> dist.ProcessGroup:
    """A process group of so many ranks, of which this is the first; its collectives return what they were given."""
    from torch._C._distributed_c10d import FakeProcessGroup
    from torch.testing._internal.distributed.fake_pg import FakeStore

    group = dist.ProcessGroup(FakeStore(), 0, ranks)
    group._set_group_name("tp2d_lone_tp")  # type: ignore[arg-type] # a NewType that older torch lacks
    backend = FakeProcessGroup._create_internal(0, ranks)
    group._set_default_backend(dist.ProcessGroup.BackendType.CUSTOM)
    for device in ("cpu", "meta"):
        group._register_backend(torch.device(device), dist.ProcessGroup.BackendType.CUSTOM, backend)
    return group


class LoneTensorParallel(TensorParallel):
    """The crossings of the first rank of a group that nobody else is in; tensors have the shapes of a real run."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group, self.size, self.rank = group, group.size(), 0

    def gather(self, x: torch.Tensor, size: int) -> torch.Tensor:
        return F.pad(x, (0, size - x.shape[-1]))

    def split(self, x: torch.Tensor) -> torch.Tensor:
        start, stop = chunk_range(x.shape[-1], self.size, self.rank)
        return x[..., start:stop].contiguous()


def short_model(
    model: Any, keep: Sequence[int], *, plan: Plan, spec: EngineSpec, layout: Layout, precision: Precision
) -> Any:
    """Some layers of a model as tp rank 0 computes them, eager, with the parts beside the layers.

    Args:
        model: the whole model, unsharded, a skeleton on the meta device.
        keep: positions of the layers.
        plan: the whole model's.
        spec: its recomputation is read.
        layout: the dp x tp layout.
        precision: parameters get its compute dtype.

    Returns:
        A model with parameters on the meta device, of the shapes of this tp rank.
    """
    short = with_layers(model, plan.layers, keep)
    split = layout.tp > 1
    own = plan_model(short, tp=layout.tp, verified_only=False)
    if split:
        apply_styles(short, own, LoneTensorParallel(lone_group(layout.tp)))
    _localize(short, own, layout=layout, dtype=precision.compute)
    for name in own.layers:
        layer = short.get_submodule(name)
        layer.forward = recomputed(layer.forward, mode=spec.activation_checkpointing, has_sums=split)
    return short


def _localize(model: nn.Module, plan: Plan, *, layout: Layout, dtype: torch.dtype) -> None:
    made: dict[int, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        shape = local_shape(parameter.shape, plan.parameters[name].tp_dim, layout)
        local = torch.empty(shape, dtype=dtype, device="meta")
        made[id(parameter)] = nn.Parameter(local, requires_grad=parameter.requires_grad)
    for module in model.modules():
        for leaf, shared in list(module._parameters.items()):
            if shared is not None:
                module._parameters[leaf] = made[id(shared)]
