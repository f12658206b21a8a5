"""A gradient that is not finite, put into a step of either engine, and how often a step makes the host wait.

Both engines' tests use it: a step with such a gradient must leave everything as it was.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from tp2d_mesh.model.optimizer import stepped_tensors
from tp2d_mesh.testing.parity import Batch, micro_batches


@dataclass(frozen=True, kw_only=True)
class Poison:
    """What spoils a run.

    Args:
        steps: index of a step -> what every number of the gradient becomes in its first micro-batch.
        module: name of the module with the spoilt `weight`.
        rank: the only rank on which it happens.
    """

    steps: Mapping[int, float]
    module: str
    rank: int


@dataclass(frozen=True, kw_only=True)
class SkippedRun:
    """What one rank saw of a run with spoilt steps.

    Args:
        losses: of the steps that were not spoilt.
        norms: gradient norm of every step.
        skipped: of every step, what the engine said.
        changed: names of what a spoilt step changed: weights of forward (`compute`) and of the optimizer (`stepped`),
            moments and the count of steps.
        state: the engine's state after the last step, every box as nested lists of numbers.
        extra: the engine's `extra_state` after the last step.
    """

    losses: list[float]
    norms: list[float]
    skipped: list[bool]
    changed: set[str]
    state: dict[str, list[Any]]
    extra: dict[str, Any]


def skipped_run(engine: Any, batches: Sequence[Batch], *, accumulation: int, poison: Poison) -> SkippedRun:
    """Train an engine on this rank's share of global `batches`, one optimizer step each, some of them spoilt.

    Args:
        engine: either engine; closed at the end.
        batches: see `micro_batches`.
        accumulation: micro-batches per step.
        poison: which steps are spoilt, and how.
    """
    mesh, losses, norms, skipped = engine.mesh, [], [], []
    changed: set[str] = set()
    # Weights that were loaded reach the forward of ZeRO with the first evaluation or step.
    engine.evaluate(micro_batches(batches[0], layout=mesh.layout, rank=mesh.rank, accumulation=1)[0])
    for step, batch in enumerate(batches):
        rows = micro_batches(batch, layout=mesh.layout, rank=mesh.rank, accumulation=accumulation)
        before = _everything(engine)
        with spoilt(engine, poison, step):
            stats = engine.train_step(rows)
        norms.append(float(stats.grad_norm))
        skipped.append(bool(stats.skipped))
        if step in poison.steps:
            changed |= _differences(before, _everything(engine))
        else:
            losses.append(float(stats.loss))
    state = {name: [piece.tensor.tolist() for piece in tensor.pieces] for name, tensor in engine.state().items()}
    extra = engine.extra_state()
    engine.close()
    return SkippedRun(losses=losses, norms=norms, skipped=skipped, changed=changed, state=state, extra=extra)


@contextmanager
def spoilt(engine: Any, poison: Poison, step: int) -> Iterator[None]:
    """Within the block, the first backward through the module gives its weight a gradient of `poison.steps[step]`."""
    if step not in poison.steps or engine.mesh.rank != poison.rank:
        yield
        return
    handles: list[Any] = []

    def spoil(grad: torch.Tensor) -> torch.Tensor:
        handles.pop().remove()
        return torch.full_like(grad, poison.steps[step])

    def watch(module: Any, _: Any) -> None:
        handles.pop().remove()
        handles.append(module.weight.register_hook(spoil))

    handles.append(engine.model.get_submodule(poison.module).register_forward_pre_hook(watch))
    yield


def _everything(engine: Any) -> dict[str, torch.Tensor]:
    """Weights, moments and step counts; forward's weights where they are others than the optimizer's (not DTensors)."""
    parameters = engine.model.named_parameters()
    found = {f"compute {name}": value for name, value in parameters if not isinstance(value, DTensor)}
    for index, tensor in enumerate(stepped_tensors(engine.optimizer)):
        found[f"stepped {index}"] = tensor
        found |= {f"{name} {index}": value for name, value in engine.optimizer.state.get(tensor, {}).items()}
    return {name: tensor.detach().clone() for name, tensor in found.items()}


def _differences(before: Mapping[str, torch.Tensor], after: Mapping[str, torch.Tensor]) -> set[str]:
    """Names of what is not bit for bit the same; moments that did not exist before must be zero."""
    return {n for n, now in after.items() if not torch.equal(before.get(n, torch.zeros_like(now)), now)}


class HostReads(TorchDispatchMode):
    """Counts, within the block, the operators that give the host a value of a device, and so wait for it.

    Attributes:
        count: how many there were.
    """

    _READS = frozenset({"_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2"})
    _INDEXED = frozenset({"index", "index_put", "index_put_"})

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def within(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """`call`, so that what is read while it runs is counted."""

        def counted(*args: Any, **options: Any) -> Any:
            with self:
                return call(*args, **options)

        return counted

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        self.count += name in self._READS or (name in self._INDEXED and any(map(_is_mask, args[1])))
        return func(*args, **(kwargs or {}))


def _is_mask(index: torch.Tensor | None) -> bool:
    """Whether the host must know how many elements this index picks."""
    return index is not None and index.dtype == torch.bool
