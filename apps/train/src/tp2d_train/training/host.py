"""Where a worker runs, under Ray Train or as any other process: which rank it is, where it computes and saves.

Ray is imported only where it is already there, so that a local run needs none.
"""

import os
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from tp2d_ckpt import Checkpointer
from tp2d_mesh import Mesh
from tp2d_mesh.devices import select_device

from tp2d_train.config import TrainConfig
from tp2d_train.contracts import Engine, Loader
from tp2d_train.runs.folder import RunFolder
from tp2d_train.training.checkpoints import Checkpoints


class Host(Protocol):
    """What a worker asks of the place it runs in."""

    def device(self, kind: str) -> torch.device:
        """Where this worker computes, given the configuration's `device`."""

    def folder(self, config: TrainConfig) -> RunFolder:
        """The run's folder.

        Raises:
            ValueError: the storage is no folder, or the run has no name.
        """

    def checkpoints(
        self, config: TrainConfig, folder: RunFolder, *, mesh: Mesh, engine: Engine, loader: Loader
    ) -> Checkpoints:
        """The run's checkpoints in its folder."""


class PlainHost:
    """A process of this machine, or of a world that torchrun or Slurm has started."""

    def device(self, kind: str) -> torch.device:
        return select_device(kind)

    def folder(self, config: TrainConfig) -> RunFolder:
        if config.name is None:
            raise ValueError("a run that is not started by the command line needs a name: give name")
        return RunFolder(Path(config.storage_path) / config.name)

    def checkpoints(
        self, config: TrainConfig, folder: RunFolder, *, mesh: Mesh, engine: Engine, loader: Loader
    ) -> Checkpoints:
        checkpointer = Checkpointer(folder.checkpoints, mesh=mesh, keep=config.keep_checkpoints, engine=config.engine)
        return Checkpoints(
            checkpointer,
            newest=checkpointer.latest,
            mesh=mesh,
            engine=engine,
            loader=loader,
            settings=config.as_dict(),
        )


class RayHost:
    """A worker of Ray Train: Ray decides the device and the folder, and is told of every checkpoint."""

    def device(self, kind: str) -> torch.device:
        import ray.train.torch

        return ray.train.torch.get_device()

    def folder(self, config: TrainConfig) -> RunFolder:
        import ray.train

        storage = ray.train.get_context().get_storage()
        kind = storage.storage_filesystem.type_name
        if kind != "local":
            raise ValueError(f"RunConfig's storage_path must be a folder that every node sees, not one of kind {kind}")
        return RunFolder(Path(storage.experiment_fs_path))

    def checkpoints(
        self, config: TrainConfig, folder: RunFolder, *, mesh: Mesh, engine: Engine, loader: Loader
    ) -> Checkpoints:
        from tp2d_ckpt.ray import newest, report_committed

        checkpointer = Checkpointer(folder.checkpoints, mesh=mesh, engine=config.engine)
        return Checkpoints(
            checkpointer,
            newest=partial(newest, checkpointer),
            mesh=mesh,
            engine=engine,
            loader=loader,
            settings=config.as_dict(),
            report=partial(report_committed, keep=config.keep_checkpoints),
        )


def find_host() -> Host:
    """The form that fits where this process runs."""
    return RayHost() if under_ray() else PlainHost()


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


def check_alone(config: Mapping[str, Any]) -> None:
    """Refuses a process that nothing has put into a world of ranks, where `config` is not a run of one process.

    Args:
        config: settings of `TrainConfig` by name, as they were given.

    Raises:
        ValueError: what starts several ranks, and what a run of one process needs.
    """
    if under_ray() or dist.is_initialized() or "WORLD_SIZE" in os.environ:
        return
    sizes = {name: config.get(name) or 1 for name in ("dp_size", "num_workers")}
    sizes["tp_size"] = config.get("tp_size", TrainConfig.tp_size)
    several = [f"{name} {size}" for name, size in sizes.items() if str(size) != "1"]
    missing = [] if config.get("name") else ["no name"]
    if several or missing:
        raise ValueError(
            "train_func trains as one rank of a run, and nothing has started ranks here "
            f"({', '.join(several + missing)}): call tp2d_train.train(TrainConfig(...)) to start a run, or hand "
            "train_func to a TorchTrainer or to torchrun; alone it trains one process, with a name and tp_size 1"
        )


def own_rank() -> int:
    """This process's rank, whether or not there are process groups yet."""
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get("RANK", "0"))


def own_world_size() -> int:
    """The number of ranks, whether or not there are process groups yet."""
    return dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))
