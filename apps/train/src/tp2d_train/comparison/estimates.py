"""What a run of a comparison is planned to need, as its engine says."""

import pkgutil

import torch
from tp2d_mesh import build_skeleton, resolve_precision
from tp2d_mesh.cost import Estimate
from tp2d_mesh.devices import total_memory

from tp2d_train.config import TrainConfig
from tp2d_train.engines import ENGINES
from tp2d_train.setup import devices, model


def planned(config: TrainConfig) -> Estimate | str:
    """Memory and collectives of a step of rank 0; or why its engine does not say them.

    Args:
        config: of a run that was checked.
    """
    name = ENGINES[config.engine].estimate
    if name is None:
        return f"the engine {config.engine} does not estimate a step"
    device, spec = devices.check(config), config.engine_spec
    is_here = device.type == "cpu" or torch.accelerator.is_available()
    dtype = resolve_precision(spec.precision, device).master
    estimate: Estimate = pkgutil.resolve_name(name)(
        spec,
        model=build_skeleton(model.check(config).config, spec=spec, dtype=dtype),
        layout=config.layout,
        device=device,
        batch=config.batch_size_per_gpu,
        seq=config.seq_length,
        micro_batches=config.gradient_accumulation_steps,
        memory_per_rank=total_memory(device, ranks=config.num_workers) if is_here else None,
    )
    return estimate
