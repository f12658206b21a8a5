"""Where the workers compute: on GPUs or CPUs, of this machine or of a cluster."""

import os
import sys

import torch
from tp2d_mesh import resolve_precision
from tp2d_mesh.devices import select_device

from tp2d_train.config import TrainConfig


def check(config: TrainConfig) -> torch.device:
    """The kind of device the workers will have, as far as the driver can know it before it starts Ray.

    Raises:
        ValueError: see `choose_device`; of a cluster only its own Ray can tell, later.
    """
    if config.launcher == "local" or not has_cluster():
        return choose_device(config, gpus=count_gpus())
    return torch.device("cpu" if config.device == "cpu" else "cuda")


def choose_device(config: TrainConfig, *, gpus: int) -> torch.device:
    """The kind of device the workers have, given how many GPUs there are for them.

    Raises:
        ValueError: fewer GPUs than `--device cuda` needs, or a precision or a record that the device does not have.
    """
    if config.device != "cpu" and gpus >= config.num_workers:
        return torch.device("cuda")
    if config.device == "cuda":
        raise ValueError(f"device 'cuda' needs a GPU for each of the {config.num_workers} workers, there are {gpus}")
    device = torch.device("cpu")
    resolve_precision(config.precision, device)
    check_snapshot(config, device=device)
    return device


def check_snapshot(config: TrainConfig, *, device: torch.device) -> None:
    """Refuses `memory_snapshot` on the CPU: torch keeps a record of a GPU's memory only.

    Raises:
        ValueError: it is asked for.
    """
    if config.memory_snapshot and device.type == "cpu":
        raise ValueError("memory_snapshot records the memory of GPUs, and the workers compute on CPUs: leave it out")


def has_cluster() -> bool:
    """Whether Ray workers would start on a cluster that exists, whose devices only Ray knows, not on this machine."""
    ray = sys.modules.get("ray")
    return bool(os.environ.get("RAY_ADDRESS")) or (ray is not None and ray.is_initialized())


def count_gpus() -> int:
    """The GPUs of this machine that torch can use."""
    return 0 if select_device("auto").type == "cpu" else torch.accelerator.device_count()
