"""The mesh of a run: whether a cluster can hold it, and this rank's place in it."""

import socket
from collections.abc import Mapping
from datetime import timedelta

import torch
import torch.distributed as dist
from tp2d_mesh import Mesh, build_mesh
from tp2d_mesh.placement import check_capacity, check_tp_groups, rank_table

from tp2d_train.config import TrainConfig


def check(config: TrainConfig, *, slots: Mapping[str, int]) -> None:
    """Refuses a cluster that has no room for the workers, or none without a tensor-parallel group on two nodes.

    Args:
        config: the configuration.
        slots: how many workers every node can hold, by node.
    """
    if not config.allow_cross_node_tp:
        check_capacity(slots, layout=config.layout)
    elif sum(slots.values()) < config.num_workers:
        raise ValueError(f"the cluster holds {sum(slots.values())} workers, num_workers is {config.num_workers}")


def build(config: TrainConfig, *, device: torch.device) -> tuple[Mesh, str]:
    """This rank's mesh, and a table of every rank's node; a collective.

    Raises:
        ValueError: the world has another size, or a tensor-parallel group stands on two nodes and may not.
    """
    mesh = build_mesh(config.layout, device=device, timeout=timedelta(seconds=config.timeout_s))
    return mesh, gather_places(mesh, node=socket.gethostname(), allow_cross_node_tp=config.allow_cross_node_tp)


def gather_places(mesh: Mesh, *, node: str, allow_cross_node_tp: bool) -> str:
    """A table of every rank's node; a collective.

    Args:
        mesh: the mesh of all ranks.
        node: the name of this rank's node.
        allow_cross_node_tp: whether a tensor-parallel group may stand on two nodes.

    Raises:
        ValueError: one does, and may not.
    """
    nodes = [""] * mesh.layout.world_size
    dist.all_gather_object(nodes, node, group=mesh.world_group)
    if not allow_cross_node_tp:
        check_tp_groups(nodes, layout=mesh.layout)
    return rank_table(nodes, layout=mesh.layout)
