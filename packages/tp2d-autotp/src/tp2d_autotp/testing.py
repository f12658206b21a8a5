"""Run the engine for a few steps and keep every number that parity compares: a function for `run_on_mesh`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tp2d_mesh import Mesh, NamedTensor
from tp2d_mesh.testing.parity import Batch, EngineRun, copied, train_engine

from tp2d_autotp.config import AutoTPSpec
from tp2d_autotp.engine import AutoTPEngine


def run_engine(
    mesh: Mesh, spec: AutoTPSpec, config: Any, folder: Path | None, batches: Sequence[Batch], *, accumulation: int
) -> EngineRun:
    """Train on this rank's share of global `batches`, one optimizer step each; see `train_engine`."""
    engine = AutoTPEngine(spec, config=config, weights=folder, mesh=mesh)
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
