"""Which dtypes a run computes in, by the names a user chooses from: the one table of the project."""

from dataclasses import dataclass

import torch

from tp2d_mesh.devices import fast_dtypes


@dataclass(frozen=True, kw_only=True)
class Precision:
    """The dtypes of one training run.

    Args:
        name: what a user calls it.
        master: dtype of the weights that the optimizer steps, and of its moments.
        compute: dtype of the weights that forward and backward see, and of the activations.
        reduce: dtype in which gradients are accumulated, summed over dp and clipped.
        loss_scaling: whether the loss needs dynamic scaling, because gradients leave the range of fp16.
    """

    name: str
    master: torch.dtype
    compute: torch.dtype
    reduce: torch.dtype
    loss_scaling: bool = False


def _alike(name: str, dtype: torch.dtype) -> Precision:
    return Precision(name=name, master=dtype, compute=dtype, reduce=dtype)


def _mixed(name: str, compute: torch.dtype, *, loss_scaling: bool = False) -> Precision:
    wide = torch.float32
    return Precision(name=name, master=wide, compute=compute, reduce=wide, loss_scaling=loss_scaling)


PRECISIONS = {
    precision.name: precision
    for precision in (
        _alike("fp64", torch.float64),
        _alike("fp32", torch.float32),
        _mixed("bf16", torch.bfloat16),
        _alike("bf16-pure", torch.bfloat16),
        _mixed("fp16", torch.float16, loss_scaling=True),
    )
}
"""Every precision by name. fp64 is for checking parity. bf16-pure has no fp32 masters, so it loses small updates."""


def check_precision(name: str) -> None:
    """Refuse a name that is neither `auto` nor in `PRECISIONS`.

    Raises:
        ValueError: lists the known names.
    """
    known = ("auto", *PRECISIONS)
    if name not in known:
        raise ValueError(f"precision={name!r} is not known: choose one of {', '.join(known)}.")


def resolve_precision(name: str, device: torch.device) -> Precision:
    """The precision to train in on `device`.

    Args:
        name: a key of `PRECISIONS`, or `auto`: bf16 on a GPU that computes in it, else fp32.
        device: where the run computes.

    Raises:
        ValueError: an unknown name, or fp16 on the CPU.
    """
    check_precision(name)
    fast = fast_dtypes(device)
    if name == "auto":
        name = "bf16" if torch.bfloat16 in fast else "fp32"
    if PRECISIONS[name].compute is torch.float16 and torch.float16 not in fast:
        raise ValueError("precision='fp16' needs a GPU and the device is the CPU: choose 'fp32' or 'bf16'.")
    return PRECISIONS[name]
