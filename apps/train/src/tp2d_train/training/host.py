"""What differs between a worker of Ray Train and any other process: its rank, device and folder, and who is told.

Ray is imported only where it is already there, so that a local run needs none.
"""

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tp2d_ckpt import Checkpointer
from tp2d_mesh import Mesh
from tp2d_mesh.devices import select_device

from tp2d_train.checkpoints import Checkpoints
from tp2d_train.config import TrainConfig
from tp2d_train.runs import CHECKPOINTS_FOLDER


def under_ray() -> bool:
    """Whether this is a worker of Ray Train."""
    if "ray.train" not in sys.modules:
        return False
    import ray.train

    try:
        ray.train.get_context()
    except RuntimeError:
        return False
    return True


def own_rank() -> int:
    """This process's rank, whether or not there are process groups yet."""
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0"))


def own_world_size() -> int:
    """The number of ranks, whether or not there are process groups yet."""
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))


def own_device(kind: str) -> torch.device:
    """Where this worker computes: what Ray gave it, else by the configuration's `device`."""
    if not under_ray():
        return select_device(kind)
    import ray.train.torch

    return ray.train.torch.get_device()


def run_folder(config: TrainConfig) -> Path:
    """The run's folder: Ray's where Ray has one, because a `TorchTrainer` of the user's own decides it there.

    Raises:
        ValueError: the storage is no folder, or the run has no name.
    """
    if under_ray():
        import ray.train

        storage = ray.train.get_context().get_storage()
        kind = storage.storage_filesystem.type_name
        if kind != "local":
            raise ValueError(f"RunConfig's storage_path must be a folder that every node sees, not one of kind {kind}")
        return Path(storage.experiment_fs_path)
    if config.name is None:
        raise ValueError("a run that is not started by the command line needs a name: give name")
    return Path(config.storage_path) / config.name


def run_checkpoints(config: TrainConfig, folder: Path, *, mesh: Mesh, **parts: Any) -> Checkpoints:
    """The run's checkpoints in `folder`, reported to Ray under Ray; `parts` are the engine and the loader."""
    root, keep = folder / CHECKPOINTS_FOLDER, config.keep_checkpoints
    parts = {"mesh": mesh, "settings": config.as_dict(), **parts}
    if not under_ray():
        checkpointer = Checkpointer(root, mesh=mesh, keep=keep, engine=config.engine)
        return Checkpoints(checkpointer, newest=checkpointer.latest, **parts)
    from tp2d_ckpt.ray import newest, report_committed

    checkpointer = Checkpointer(root, mesh=mesh, engine=config.engine)
    report = partial(report_committed, keep=keep)
    return Checkpoints(checkpointer, newest=partial(newest, checkpointer), report=report, **parts)
