"""Clusters that cannot hold the mesh, and tensor-parallel groups on two nodes."""

import dataclasses

import pytest
from tp2d_mesh import Mesh
from tp2d_mesh.testing import run_on_mesh
from tp2d_train.config import TrainConfig
from tp2d_train.setup.mesh import check, gather_places


def test_a_cluster_whose_nodes_would_split_a_tensor_parallel_group() -> None:
    """Two nodes with three places each hold four workers, but only one whole group of three or two of two."""
    config = TrainConfig(num_workers=4, tp_size=2)
    check(config, slots={"a": 3, "b": 3})
    with pytest.raises(ValueError, match=r"a: 3, b: 1"):
        check(config, slots={"a": 3, "b": 1})
    across = dataclasses.replace(config, allow_cross_node_tp=True)
    check(across, slots={"a": 3, "b": 1})
    with pytest.raises(ValueError, match=r"the cluster holds 3 workers, num_workers is 4"):
        check(across, slots={"a": 3})


def places(mesh: Mesh, nodes: list[str], *, allow: bool) -> str:
    try:
        return gather_places(mesh, node=nodes[mesh.rank], allow_cross_node_tp=allow)
    except ValueError as error:
        return str(error)


def test_a_tp_group_on_two_nodes_is_refused_unless_allowed() -> None:
    refused = run_on_mesh(places, ["a", "b"], allow=False, tp=2)
    assert refused[0] == refused[1] and "1 of 1 tp groups on more than one node" in refused[0]
    allowed = run_on_mesh(places, ["a", "b"], allow=True, tp=2)
    assert allowed == ["dp 0: rank 0 on a, rank 1 on b"] * 2
