"""The plan as a tensor parallel model: parameters become DTensors, modules compute on what this rank holds.

DTensors do the bookkeeping: placements, names and global shapes that FSDP2, optimizers and checkpoints understand. The
arithmetic runs on plain local tensors with the explicit crossings of `collectives`, without a dispatch per operator.
An attention or MLP block crosses once for its input, whatever reads it. One tp rank needs nothing of this.
"""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import Function
from torch.distributed.tensor import DTensor, Replicate, Shard
from tp2d_mesh import Mesh, ParameterPlan, Plan, Style, chunk_range, tp_ranges

from tp2d_fsdp2.collectives import TensorParallel

Forward = Callable[..., Any]


def distribute_parameters(model: nn.Module, plan: Plan, mesh: Mesh) -> None:
    """Replace every meta parameter by a DTensor on the tp axis, ties kept.

    Args:
        model: a model whose parameters are on the meta device.
        plan: the model's plan at `mesh.layout.tp`.
        mesh: the dp x tp mesh.
    """
    made: dict[int, nn.Parameter] = {}
    for name, parameter in model.named_parameters():
        made[id(parameter)] = _distributed(parameter, plan.parameters[name], mesh)
    for module in model.modules():
        for leaf, shared in list(module._parameters.items()):
            if shared is not None:
                module.register_parameter(leaf, made[id(shared)])


def _distributed(parameter: nn.Parameter, place: ParameterPlan, mesh: Mesh) -> nn.Parameter:
    shape = list(parameter.shape)
    if place.tp_dim is not None:
        ranges = tp_ranges(shape[place.tp_dim], tp=mesh.layout.tp, tp_rank=mesh.tp_rank)
        shape[place.tp_dim] = sum(stop - start for start, stop in ranges)
    local = torch.empty(shape, dtype=parameter.dtype, device=parameter.device)
    tensor = DTensor.from_local(
        local,
        mesh.device_mesh["tp"],
        [Replicate() if place.tp_dim is None else Shard(place.tp_dim)],
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
    return nn.Parameter(tensor, requires_grad=parameter.requires_grad)


def apply_styles(model: nn.Module, plan: Plan, tp: TensorParallel) -> None:
    """Make every module of the plan cross between whole and split activations, as its style says.

    What it computes with are the local tensors that `with_local_parameters` puts in the DTensors' place.
    """
    blocks = entering_blocks(model, plan)
    for name, style in plan.modules.items():
        module, parent = model.get_submodule(name), name.rpartition(".")[0]
        if style is Style.COLUMN and parent in blocks:
            continue
        if style is not Style.PARTIAL_GRADIENT:
            module.forward = _FORWARDS[style](module, tp)  # type: ignore[assignment]
    for name in blocks:
        block = model.get_submodule(name)
        block.forward = _entering(block, tp)  # type: ignore[assignment]


def entering_blocks(model: nn.Module, plan: Plan) -> set[str]:
    """Names of the modules that enter tp for all their projections: attention and MLP blocks.

    Every parameter in such a block must lie among split activations. Then all of the input's gradient is partial, and
    is summed once. In any other block each projection enters for itself.
    """
    parents = {name.rpartition(".")[0] for name, style in plan.modules.items() if style is Style.COLUMN}
    return {name for name in parents if _computes_on_split(model.get_submodule(name), name, plan)}


def _computes_on_split(block: nn.Module, name: str, plan: Plan) -> bool:
    if isinstance(block, nn.ModuleList | nn.ModuleDict):
        return False  # nobody calls it
    owners = {parameter.rpartition(".")[0] for parameter, _ in block.named_parameters(prefix=name)}
    return all(plan.modules.get(owner) in (Style.COLUMN, Style.ROW, Style.PARTIAL_GRADIENT) for owner in owners)


class _Local(Function):
    """`DTensor.to_local` at 42 % of its host time: the gradient's specification is the parameter's, so none is made."""

    @staticmethod
    def forward(ctx: Any, parameter: DTensor) -> torch.Tensor:
        ctx.spec = parameter._spec
        return parameter._local_tensor.view_as(parameter._local_tensor)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> DTensor:
        return DTensor(grad, ctx.spec, requires_grad=False)  # type: ignore[call-arg]


def with_local_parameters(modules: Iterable[nn.Module], forward: Forward) -> Forward:
    """A forward in which these modules see the local tensors of their DTensor parameters, with gradients kept.

    Args:
        modules: all that own a parameter which `forward` reads.
        forward: of the module around them.
    """
    owners = [module for module in modules if module._parameters]

    def run(*args: Any, **kwargs: Any) -> Any:
        kept = [(module._parameters, dict(module._parameters)) for module in owners]
        for parameters, own in kept:
            for name, parameter in own.items():
                if isinstance(parameter, DTensor):
                    parameters[name] = _Local.apply(parameter)
        try:
            return forward(*args, **kwargs)
        finally:
            for parameters, own in kept:
                parameters.update(own)

    return run


def _entering(block: nn.Module, tp: TensorParallel) -> Forward:
    inner = block.forward
    name = next(iter(inspect.signature(inner).parameters))

    def forward(*args: Any, **kwargs: Any) -> Any:
        if args:
            return inner(tp.enter(args[0]), *args[1:], **kwargs)
        return inner(**{**kwargs, name: tp.enter(kwargs[name])})

    return forward


def _column(module: nn.Module, tp: TensorParallel) -> Forward:
    inner = module.forward

    def forward(x: torch.Tensor) -> torch.Tensor:
        return inner(tp.enter(x))

    return forward


def _column_gather(module: nn.Module, tp: TensorParallel) -> Forward:
    split, size = _column(module, tp), module.weight.shape[0]  # type: ignore[index,union-attr]

    def forward(x: torch.Tensor) -> torch.Tensor:
        return tp.gather(split(x), size)  # type: ignore[arg-type]

    return forward


def _row(module: nn.Module, tp: TensorParallel) -> Forward:
    inner = module.forward
    if module.bias is None:
        return lambda x: tp.total(inner(x))

    def forward(x: torch.Tensor) -> torch.Tensor:
        return tp.total(F.linear(x, module.weight)) + module.bias  # type: ignore[arg-type,operator]

    return forward


def _row_split(module: nn.Module, tp: TensorParallel) -> Forward:
    row = _row(module, tp)

    def forward(x: torch.Tensor) -> torch.Tensor:
        return row(tp.split(x))

    return forward


def _vocab_embedding(module: nn.Module, tp: TensorParallel) -> Forward:
    inner, padding = module.forward, module.padding_idx
    start, stop = chunk_range(module.weight.shape[0], tp.size, tp.rank)  # type: ignore[index,union-attr,arg-type]
    # The row that never gets a gradient is counted from this rank's first row, if this rank holds it at all.
    local_padding = padding - start if padding is not None and start <= padding < stop else None  # type: ignore[operator]

    def forward(ids: torch.Tensor) -> torch.Tensor:
        elsewhere = (ids < start) | (ids >= stop)
        module.padding_idx = local_padding  # type: ignore[assignment]
        try:
            out = inner((ids - start).masked_fill(elsewhere, 0))
        finally:
            module.padding_idx = padding
        return tp.total(out.masked_fill(elsewhere[..., None], 0))

    return forward


_FORWARDS: dict[Style, Callable[[nn.Module, TensorParallel], Forward]] = {
    Style.COLUMN: _column,
    Style.COLUMN_GATHER: _column_gather,
    Style.VOCAB_HEAD: _column,
    Style.ROW: _row,
    Style.ROW_SPLIT: _row_split,
    Style.VOCAB_EMBEDDING: _vocab_embedding,
}
