"""Matrix products of the decoder layers in float8, row by row, through torchao; faster and not exact.

Weights, activations between products and everything else stay in bf16 and fp32 as without. Each product of a linear
layer, of forward and of backward, casts both of its factors to e4m3 with a scale per row of the first and per column
of the second. A factor's elements move by up to 2^-4 of their size. Head and embedding stay out, as in torchtitan.

A rank casts its own part of a split weight and of split activations. So scales, and with them the rounding, differ
between tp sizes; the size of the error does not.
"""

from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from tp2d_mesh import Layout, Plan, Precision, Style, tp_ranges

WARNING = "matrix products run in float8 (rowwise): losses are not exact"
"""What a user of the option is told."""

_CAPABILITY = (8, 9)
_MULTIPLE = 16  # of both sizes of a weight, for the hardware's float8 products

# Tests set it: casts as on a GPU, then products in fp32, which a CPU can do.
_EMULATED = False


def check_device(*, precision: Precision, device: torch.device) -> None:
    """Refuse float8 where the device, the precision or the environment lacks it.

    A GPU that this process does not see is judged by the worker that does.

    Args:
        precision: of the run.
        device: where it computes.

    Raises:
        ValueError: names the device, the precision or the package.
    """
    if not _EMULATED:
        _check_capability(device)
    if precision.compute is not torch.bfloat16:
        raise ValueError(
            f"float8=True: row-wise float8 products give bf16, and precision={precision.name!r} computes in "
            f"{str(precision.compute).removeprefix('torch.')}: use precision='bf16', or leave float8 out."
        )
    if find_spec("torchao") is None:
        raise ValueError(
            "float8=True needs the package torchao, which is not installed here: run `pip install torchao`, or leave "
            "float8 out."
        )


def _check_capability(device: torch.device) -> None:
    least = ".".join(map(str, _CAPABILITY))
    way_out = f"it needs an NVIDIA GPU of compute capability {least} or higher: leave float8 out."
    if device.type != "cuda":
        kind = device.type.upper()
        raise ValueError(f"float8=True: the device is the {kind}, which has no float8 products; {way_out}")
    if torch.version.hip:
        raise ValueError(f"float8=True has not been checked on AMD GPUs; {way_out}")
    if torch.cuda.is_available() and (found := torch.cuda.get_device_capability(device)) < _CAPABILITY:
        name = torch.cuda.get_device_name(device)
        raise ValueError(f"float8=True: {name} has compute capability {found[0]}.{found[1]}; {way_out}")


def check_model(model: Any, *, plan: Plan, layout: Layout) -> None:
    """Refuse a model of which a linear layer cannot run in float8: none is left out in silence.

    Args:
        model: the unsharded model.
        plan: its plan at `layout.tp`.
        layout: the dp x tp layout.

    Raises:
        ValueError: names the module and its sizes on a rank.
    """
    names = list(_linear_layers(model, plan))
    if not names:
        raise ValueError(
            f"float8=True: the decoder layers of model type {model.config.model_type!r} hold no torch.nn.Linear: leave "
            f"float8 out."
        )
    for name in names:
        for rank in range(layout.tp):
            rows, columns = _local_sizes(model.get_submodule(name), name, plan=plan, tp=layout.tp, tp_rank=rank)
            if rows % _MULTIPLE or columns % _MULTIPLE:
                raise ValueError(
                    f"float8=True: the weight of {name} is {rows} x {columns} on a rank at tp_size={layout.tp}, and "
                    f"float8 products need multiples of {_MULTIPLE}: choose another tp_size, or leave float8 out."
                )
        if plan.modules.get(name) in (Style.ROW, Style.ROW_SPLIT) and model.get_submodule(name).bias is not None:
            raise ValueError(
                f"float8=True: {name} adds its bias after the sum over tp_size={layout.tp} ranks, which is not done in "
                f"float8: use tp_size=1, or leave float8 out."
            )


def _local_sizes(module: Any, name: str, *, plan: Plan, tp: int, tp_rank: int) -> tuple[int, int]:
    sizes = list(module.weight.shape)
    dim = plan.parameters[f"{name}.weight"].tp_dim
    if dim is not None:
        sizes[dim] = sum(stop - start for start, stop in tp_ranges(sizes[dim], tp=tp, tp_rank=tp_rank))
    return sizes[0], sizes[1]


def _linear_layers(model: Any, plan: Plan) -> Iterator[str]:
    """Names of the modules that run in float8: the plain linear layers inside the decoder layers."""
    for layer in plan.layers:
        for name, module in model.get_submodule(layer).named_modules(prefix=layer):
            if type(module) is nn.Linear:
                yield name


def convert(model: Any, *, plan: Plan) -> None:
    """Swap the linear layers inside the decoder layers by torchao's; names and parameters stay.

    Args:
        model: a skeleton on the meta device, before it is split: torchao's modules then compute on whatever local
            tensors stand in their parameters' place.
        plan: names the layers.

    Source:
        torchao's `Float8LinearConfig.from_recipe_name("rowwise")`.
    """
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    chosen = set(_linear_layers(model, plan))
    # The gradient of a weight is a product over tokens, whose number need not be a multiple of 16: torchao pads it.
    config = replace(Float8LinearConfig.from_recipe_name("rowwise"), pad_inner_dim=True, emulate=_EMULATED)
    convert_to_float8_training(model, module_filter_fn=lambda _, name: name in chosen, config=config)
