"""Run the engine for a few steps and keep every number that parity compares; a function for `run_on_mesh`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tp2d_mesh import Mesh, NamedTensor
from tp2d_mesh.parity import Batch, micro_batches

from tp2d_autotp.engine import AutoTPEngine


@dataclass(frozen=True, kw_only=True)
class EngineRun:
    """What one rank saw.

    Args:
        losses: mean token loss of every step.
        norms: global gradient norm of every step, before clipping.
        gradients: ``grad.<name>`` -> this rank's boxes at the first step, before clipping.
        weights: ``model.<name>`` -> this rank's boxes after the last step.
    """

    losses: list[float]
    norms: list[float]
    gradients: dict[str, NamedTensor]
    weights: dict[str, NamedTensor]


def run_engine(
    mesh: Mesh,
    config: Any,
    folder: Path | None,
    batches: Sequence[Batch],
    *,
    accumulation: int,
    options: Mapping[str, Any],
) -> EngineRun:
    """Train on global `batches`, one optimizer step each, on this rank's share of them.

    Args:
        mesh: the dp x tp mesh.
        config: the model's transformers configuration.
        folder: its weights, or None to draw them.
        batches: global batches; see `micro_batches`.
        accumulation: micro-batches per step.
        options: further arguments of `AutoTPEngine`; without ``max_grad_norm`` gradients are not clipped.
    """
    engine = AutoTPEngine(config=config, weights=folder, mesh=mesh, **{"max_grad_norm": None, **options})
    gradients: dict[str, NamedTensor] = {}
    step = engine.zero.step

    def read_then_step() -> None:
        gradients.update(_copies(engine.gradients()))
        engine.zero.step = step
        step()

    engine.zero.step = read_then_step
    losses, norms = [], []
    for batch in batches:
        stats = engine.train_step(micro_batches(batch, layout=mesh.layout, rank=mesh.rank, accumulation=accumulation))
        losses.append(float(stats.loss))
        norms.append(float(stats.grad_norm))
    weights = {name: tensor for name, tensor in engine.state().items() if name.startswith("model.")}
    engine.close()
    return EngineRun(losses=losses, norms=norms, gradients=gradients, weights=weights)


def _copies(tensors: Mapping[str, NamedTensor]) -> dict[str, NamedTensor]:
    return {
        name: replace(tensor, pieces=tuple(replace(p, tensor=p.tensor.clone()) for p in tensor.pieces))
        for name, tensor in tensors.items()
    }
