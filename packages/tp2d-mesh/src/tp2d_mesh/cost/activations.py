"""What the layers of a model keep for backward, and what backward of one takes: traced, not guessed.

Two or three layers are run forward and backward on fake tensors, which have shapes and no values, with every tensor
counted for as long as it lives. That takes tenths of a second, neither memory nor a process group, and knows what the
model's own code keeps.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tp2d_mesh.cost.layers import kinds_of_layers
from tp2d_mesh.cost.peak import peak_bytes


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Bytes of the activations of all decoder layers of one micro-batch, without weights and without the head.

    Args:
        kept: alive when forward has come through the last layer, hidden states and embeddings included.
        working: the most that backward of the last layer has beyond `kept`, gradients of its weights included.
        layer: of `kept`, what the last layer keeps.
    """

    kept: int
    working: int
    layer: int


Run = Callable[[Any], torch.Tensor]
"""Runs a model's layers: takes the model, returns the last hidden states."""


def trace_layers(
    model: Any, layers: Sequence[str], *, build: Callable[[Sequence[int]], Any], run: Run, keep_gradients: bool
) -> Activations:
    """The activations of a whole model, from short ones.

    Args:
        model: the whole one, a skeleton on the meta device; its layers are only looked at.
        layers: full names of its layers, in order.
        build: makes the model with the layers at these positions as a rank has it, with parameters on the meta device.
        run: its forward; called while tensors are fake.
        keep_gradients: whether the gradients of a layer's weights are alive until its backward ends; else they are not
            counted.
    """
    kinds = kinds_of_layers(model, layers)
    once = [positions[-1] for positions in kinds]
    base, working = _traced(build(once), run, keep_gradients=keep_gradients)
    kept, more = base, 0
    for positions in kinds:
        if len(positions) > 1:
            keep = sorted({*once, positions[-2]})
            longer, _ = _traced(build(keep), run, keep_gradients=keep_gradients)
            more = longer - base
            kept += more * (len(positions) - 1)
    return Activations(kept=kept, working=working, layer=more)


@contextmanager
def fake_tensors() -> Iterator[None]:
    """Within the block, new tensors have shapes and no values; a model's real buffers may be used."""
    with FakeTensorMode(allow_non_fake_inputs=True), _Waiting():
        yield


class _Waiting(TorchDispatchMode):
    """Waiting for a collective gives back the tensor that it was given, as for real; a fake one would be a new one."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is torch.ops._c10d_functional.wait_tensor.default:
            return args[0]
        return func(*args, **(kwargs or {}))


def fake_parameters(model: nn.Module) -> None:
    """Put fake tensors on the CPU in the place of a model's parameters on the meta device, ties kept."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                empty = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
                fake = nn.Parameter(empty, requires_grad=parameter.requires_grad)
                module._parameters[name] = made.setdefault(id(parameter), fake)


def _traced(model: nn.Module, run: Run, *, keep_gradients: bool) -> tuple[int, int]:
    """Bytes after forward, and the most that backward adds."""
    model.train()
    with fake_tensors():
        fake_parameters(model)
        _drop_gradients(model, at_once=not keep_gradients)
        return _peaks(model, run)


def _peaks(model: nn.Module, run: Run) -> tuple[int, int]:
    with peak_bytes() as peak:
        hidden = run(model)
        kept = peak.now()
        gradient = torch.empty_like(hidden)
        peak.restart()
        torch.autograd.backward([hidden], [gradient])
    return kept, peak.bytes - kept


def _drop_gradients(model: nn.Module, *, at_once: bool) -> None:
    """Drop the gradients of a list's entry, a layer, when all are there, or each at once; others at once."""
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    units = [list(layer.parameters()) for layers in lists[:1] for layer in layers]
    inside = {p for unit in units for p in unit}
    for unit in [*units, *([p] for p in model.parameters() if p not in inside)]:
        missing = set(unit)
        for parameter in unit:
            parameter.register_post_accumulate_grad_hook(_dropping(unit, missing, at_once=at_once))


def _dropping(unit: list[nn.Parameter], missing: set[nn.Parameter], *, at_once: bool) -> Callable[[Any], None]:
    def hook(parameter: Any) -> None:
        if at_once:
            parameter.grad = None
        missing.discard(parameter)
        if not missing:
            for one in unit:
                one.grad = None

    return hook
