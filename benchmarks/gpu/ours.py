"""The engine of tp2d-fsdp2 on one rank, with the switches of a contender."""

from dataclasses import replace

import torch
from tp2d_fsdp2 import FSDP2Engine
from tp2d_mesh import EngineSpec

from gpu.loops import LEARNING_RATE, MAX_NORM, WEIGHT_DECAY, Setting
from gpu.rows import Batch, Packed
from gpu.weights import SEED


def pinned(batch: Batch) -> Batch:
    """The batch as a loader for a GPU hands it out, in pinned memory with its documents' ends; as it is without one."""
    if not torch.cuda.is_available():
        return batch
    moved = Packed({name: tensor.pin_memory() for name, tensor in batch.items()})
    if isinstance(batch, Packed):
        moved.documents = replace(batch.documents, ends=batch.documents.ends.pin_memory())
    return moved


class Ours:
    """Nothing but the engine: what it is given is what a user gives."""

    def __init__(self, setting: Setting) -> None:
        options = dict(setting.contender.options)
        if options.get("compile"):
            options["compile_backend"] = setting.backend
        spec = EngineSpec(
            precision="bf16" if setting.half else "fp32",
            learning_rate=LEARNING_RATE,
            weight_decay=WEIGHT_DECAY,
            max_grad_norm=MAX_NORM,
            seed=SEED,
            **options,
        )
        self.engine = FSDP2Engine(spec, config=setting.config, weights=None, mesh=setting.mesh)

    def step(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        stats = self.engine.train_step([pinned(batch)])
        return stats.loss, stats.grad_norm
