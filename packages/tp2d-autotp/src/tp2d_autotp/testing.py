"""Run the engine for a few steps and keep every number that parity compares; a function for `run_on_mesh`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tp2d_mesh import Mesh, NamedTensor
from tp2d_mesh.parity import Batch, EngineRun, copied, train_engine

from tp2d_autotp.engine import AutoTPEngine


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
        batches: global batches; see `tp2d_mesh.parity.micro_batches`.
        accumulation: micro-batches per step.
        options: further arguments of `AutoTPEngine`; without ``max_grad_norm`` gradients are not clipped.
    """
    engine = AutoTPEngine(config=config, weights=folder, mesh=mesh, **{"max_grad_norm": None, **options})
    gradients: dict[str, NamedTensor] = {}
    step = engine.zero.step

    def read_then_step() -> None:
        gradients.update(copied(engine.gradients()))
        engine.zero.step = step
        step()

    engine.zero.step = read_then_step
    run = train_engine(engine, batches, accumulation=accumulation, gradients=gradients)
    engine.close()
    return run
