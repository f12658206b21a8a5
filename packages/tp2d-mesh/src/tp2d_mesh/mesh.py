"""The live dp x tp mesh of one process: its place, its DeviceMesh and its process groups.

The mesh is passed to whoever needs it; no module keeps one. Its groups are created here, once, with the caller's
time-out. The groups that `init_device_mesh` creates ignore that time-out and wait for torch's default, so a lost peer
would hang a run for half an hour. (`backend_override` sets the time-out of one backend, and a GPU mesh has two.)
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from tp2d_mesh.devices import activate, backend_for, bound_device, select_device
from tp2d_mesh.layout import Layout

AXES = ("dp", "tp")


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """One process's view of the mesh; `build_mesh` makes it.

    Args:
        layout: the sizes of the axes.
        device_mesh: torch's mesh of shape (dp, tp) with axes `"dp"` and `"tp"`.
        device: where this rank computes.
        rank: this process's global rank.
        owns_world: whether `build_mesh` created the default process group, so that `close` ends it.
    """

    layout: Layout
    device_mesh: DeviceMesh
    device: torch.device
    rank: int
    owns_world: bool = False

    @property
    def dp_rank(self) -> int:
        """Which replica this is: the index that decides which rows of the data this rank sees."""
        return self.layout.coordinates(self.rank).dp_rank

    @property
    def tp_rank(self) -> int:
        """Which part of every split tensor this rank holds."""
        return self.layout.coordinates(self.rank).tp_rank

    @property
    def dp_group(self) -> dist.ProcessGroup:
        """The ranks that hold the same part of the model and see different rows."""
        return self.device_mesh.get_group("dp")

    @property
    def tp_group(self) -> dist.ProcessGroup:
        """The ranks that share their rows and split the model."""
        return self.device_mesh.get_group("tp")

    @property
    def world_group(self) -> dist.ProcessGroup:
        """All ranks: the default process group."""
        group = dist.group.WORLD
        if group is None:
            raise RuntimeError("the mesh is closed: its process groups are destroyed.")
        return group

    def close(self) -> None:
        """Destroy the mesh's process groups, and the default one if `build_mesh` created it.

        Call it once, on every rank, after the last collective. Where the default group is gone already, and all groups
        with it, there is nothing left to do.
        """
        if not dist.is_initialized():
            return
        if self.owns_world:
            dist.destroy_process_group()
            return
        for group in (self.dp_group, self.tp_group):
            dist.destroy_process_group(group)


def build_mesh(
    layout: Layout, *, device: torch.device | None = None, timeout: timedelta = timedelta(minutes=30)
) -> Mesh:
    """The mesh of this process; a collective, called by every rank with the same `layout` and `timeout`.

    Joins the default process group (Ray Train makes one). Where there is none, it is created from the environment of
    torchrun (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT); a 1x1 layout needs no environment.

    Args:
        layout: the sizes of the axes; their product is the world size.
        device: where this rank computes; None takes `select_device`'s choice.
        timeout: after how long a collective on the dp or tp group (and on the default group if it is created here)
            fails when a peer does not join it.

    Raises:
        ValueError: the world has another size than `layout`, or there is no world to join.
    """
    device = select_device() if device is None else device
    owns_world = not dist.is_initialized()
    _check_world(layout, _environment_size(layout) if owns_world else dist.get_world_size())
    activate(device)
    if owns_world:
        _init_world(device, timeout)
    backend = backend_for(device)
    groups = [
        _axis_group(axis, ranks, backend=backend, timeout=timeout)
        for axis, ranks in zip(AXES, (layout.dp_groups(), layout.tp_groups()), strict=True)
    ]
    device_mesh = DeviceMesh.from_group(groups, device.type, mesh=layout.tp_groups(), mesh_dim_names=AXES)
    return Mesh(layout=layout, device_mesh=device_mesh, device=device, rank=dist.get_rank(), owns_world=owns_world)


def _axis_group(axis: str, groups: Sequence[Sequence[int]], *, backend: str, timeout: timedelta) -> dist.ProcessGroup:
    """This rank's group of an axis; every rank takes part in creating all of them, in the same order."""
    group, _ = dist.new_subgroups_by_enumeration(
        [list(ranks) for ranks in groups], timeout=timeout, backend=backend, group_desc=f"mesh_{axis}"
    )
    return group


def _init_world(device: torch.device, timeout: timedelta) -> None:
    bound = bound_device(device)
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group(backend_for(device), timeout=timeout, device_id=bound)
    else:  # alone
        store = dist.HashStore()
        dist.init_process_group(
            backend_for(device), store=store, rank=0, world_size=1, timeout=timeout, device_id=bound
        )


def _environment_size(layout: Layout) -> int:
    if "WORLD_SIZE" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    if layout.world_size == 1:
        return 1
    raise ValueError(
        f"a {layout} mesh needs {layout.world_size} processes, and this one was started alone (WORLD_SIZE is not set): "
        f"start it with `torchrun --nproc-per-node {layout.world_size}` or under Ray Train."
    )


def _check_world(layout: Layout, world_size: int) -> None:
    if world_size != layout.world_size:
        raise ValueError(
            f"a {layout} mesh needs dp * tp = {layout.dp} * {layout.tp} = {layout.world_size} ranks and the world has "
            f"{world_size}: start {layout.world_size} workers, or choose dp and tp whose product is {world_size}."
        )
