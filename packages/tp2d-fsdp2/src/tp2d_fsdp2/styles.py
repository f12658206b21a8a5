"""The plan as a tensor parallel model: parameters become DTensors, modules compute on what this rank holds.

DTensors do the bookkeeping: placements, names and global shapes that FSDP2, optimizers and checkpoints understand. The
arithmetic runs on plain local tensors with the explicit crossings of `collectives`. This costs no dispatch per operator
and lets projections share a backward all-reduce.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor, Replicate, Shard
from tp2d_mesh import Mesh, ParameterPlan, Plan, Style, chunk_range, tp_ranges

from tp2d_fsdp2.collectives import TensorParallel


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
    """Make every module that owns parameters compute on its local tensors, as its style says."""
    for name, module in model.named_modules():
        if module._parameters:
            module.forward = _FORWARDS.get(plan.modules.get(name), _whole)(module, tp)  # type: ignore[arg-type]


@contextmanager
def local_parameters(module: nn.Module) -> Iterator[dict[str, torch.Tensor | None]]:
    """Within the block, the module's own DTensor parameters are seen as plain local tensors, with gradients kept."""
    kept = dict(module._parameters)
    seen: dict[str, torch.Tensor | None] = {n: p.to_local() if isinstance(p, DTensor) else p for n, p in kept.items()}
    module._parameters.update(seen)  # type: ignore[arg-type]
    try:
        yield seen
    finally:
        module._parameters.update(kept)


def _whole(module: nn.Module, tp: TensorParallel) -> Callable[..., Any]:
    """Whole weights, also those with partial gradients: `gradients` sums these once per step."""
    inner = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        with local_parameters(module):
            return inner(*args, **kwargs)

    return forward


def _column(module: nn.Module, tp: TensorParallel) -> Callable[..., Any]:
    inner = module.forward

    def forward(x: torch.Tensor) -> torch.Tensor:
        with local_parameters(module):
            return inner(tp.enter(x))

    return forward


def _column_gather(module: nn.Module, tp: TensorParallel) -> Callable[..., Any]:
    split, size = _column(module, tp), module.weight.shape[0]  # type: ignore[index,union-attr]

    def forward(x: torch.Tensor) -> torch.Tensor:
        return tp.gather(split(x), size)  # type: ignore[arg-type]

    return forward


def _row(module: nn.Module, tp: TensorParallel) -> Callable[..., Any]:
    inner = module.forward

    def forward(x: torch.Tensor) -> torch.Tensor:
        with local_parameters(module) as seen:
            bias = seen.get("bias")
            module._parameters["bias"] = None  # added once, after the sum
            out = tp.total(inner(x))
            return out if bias is None else out + bias

    return forward


def _row_split(module: nn.Module, tp: TensorParallel) -> Callable[..., Any]:
    row = _row(module, tp)

    def forward(x: torch.Tensor) -> torch.Tensor:
        return row(tp.split(x))

    return forward


def _vocab_embedding(module: nn.Module, tp: TensorParallel) -> Callable[..., Any]:
    inner, padding = module.forward, module.padding_idx
    start, stop = chunk_range(module.weight.shape[0], tp.size, tp.rank)  # type: ignore[index,union-attr,arg-type]
    # The row that never gets a gradient is counted from this rank's first row, if this rank holds it at all.
    local_padding = padding - start if padding is not None and start <= padding < stop else None  # type: ignore[operator]

    def forward(ids: torch.Tensor) -> torch.Tensor:
        elsewhere = (ids < start) | (ids >= stop)
        with local_parameters(module):
            module.padding_idx = local_padding  # type: ignore[assignment]
            try:
                out = inner((ids - start).masked_fill(elsewhere, 0))
            finally:
                module.padding_idx = padding
        return tp.total(out.masked_fill(elsewhere[..., None], 0))

    return forward


_FORWARDS: dict[Style | None, Callable[[nn.Module, TensorParallel], Callable[..., Any]]] = {
    Style.COLUMN: _column,
    Style.COLUMN_GATHER: _column_gather,
    Style.VOCAB_HEAD: _column,
    Style.ROW: _row,
    Style.ROW_SPLIT: _row_split,
    Style.VOCAB_EMBEDDING: _vocab_embedding,
}
