"""The cluster of RAY_ADDRESS, a real one of this machine, and one that is not there."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster
from tp2d_train.doctor.cluster import check_cluster
from tp2d_train.doctor.finding import Level

from apps.train.tests.command_line import free_port


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A node of 3 CPUs, which nobody is connected to."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 3, "object_store_memory": 80 << 20})
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    yield
    ray.shutdown()  # where the check has left a connection
    cluster.shutdown()


def test_a_cluster_that_sees_the_storage(cluster: None, tmp_path: Path) -> None:
    nodes, storage = check_cluster(tmp_path)
    assert nodes.level is Level.OK
    assert nodes.text.startswith("1 nodes: ")
    assert "(3 CPUs" in nodes.text
    assert (storage.level, storage.text) == (Level.OK, "the driver and 1 nodes see each other's files")


def test_a_cluster_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shows a command that hangs where a cluster is gone."""
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_port()}")
    start = time.monotonic()
    (found,) = check_cluster(tmp_path)
    assert time.monotonic() - start < 10
    assert found.level is Level.PROBLEM
    assert "no Ray cluster answers at RAY_ADDRESS 127.0.0.1:" in found.text
