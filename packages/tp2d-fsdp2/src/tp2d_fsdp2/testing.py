"""Run the engine for a few steps and keep every number that parity compares: a function for `run_on_mesh`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tp2d_mesh import EngineSpec, Mesh, NamedTensor
from tp2d_mesh.testing.parity import Batch, EngineRun, copied, train_engine

from tp2d_fsdp2.engine import FSDP2Engine


def run_engine(
    mesh: Mesh, spec: EngineSpec, config: Any, folder: Path | None, batches: Sequence[Batch], *, accumulation: int
) -> EngineRun:
    """Train on this rank's share of global `batches`, one optimizer step each; see `train_engine`."""
    engine = FSDP2Engine(spec, config=config, weights=folder, mesh=mesh)
    gradients: dict[str, NamedTensor] = {}

    def remember(*_: Any) -> None:
        gradients.update(copied(engine.gradients()))
        hook.remove()

    hook = engine.optimizer.register_step_pre_hook(remember)
    run = train_engine(engine, batches, accumulation=accumulation, gradients=gradients)
    engine.close()
    if spec.compile:
        torch._dynamo.reset()  # ranks may be used again, and keep the graphs of all that went before
    return run
