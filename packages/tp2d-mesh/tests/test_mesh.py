import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import Shard, distribute_tensor
from tp2d_mesh import Layout, build_mesh
from tp2d_mesh.testing import MeshError, run_on_mesh

CPU = torch.device("cpu")
MESHES = [(1, 1), (2, 2), (4, 1), (1, 4)]


def groups_of(mesh):
    ranks = [dist.get_process_group_ranks(group) for group in (mesh.dp_group, mesh.tp_group, mesh.world_group)]
    sums = []
    for group in (mesh.dp_group, mesh.tp_group, mesh.world_group):
        x = torch.tensor([2.0**mesh.rank])
        dist.all_reduce(x, group=group)
        sums.append(x.item())
    return ranks, sums


@pytest.mark.parametrize(("dp", "tp"), MESHES)
def test_the_groups_are_those_of_the_layout_and_communicate(dp, tp):
    layout = Layout(dp=dp, tp=tp)
    for rank, (ranks, sums) in enumerate(run_on_mesh(groups_of, dp=dp, tp=tp)):
        at = layout.coordinates(rank)
        expected = [layout.dp_groups()[at.tp_rank], layout.tp_groups()[at.dp_rank], range(layout.world_size)]
        assert ranks == [list(group) for group in expected]
        assert sums == [sum(2.0**r for r in group) for group in expected]


def device_mesh_of(mesh):
    device_mesh = mesh.device_mesh
    shards = distribute_tensor(torch.arange(8.0).view(2, 4), device_mesh, [Shard(0), Shard(1)])
    return {
        "names": device_mesh.mesh_dim_names,
        "ranks": device_mesh.mesh.tolist(),
        "coordinate": list(device_mesh.get_coordinate()),
        "same groups": device_mesh["dp"].get_group() is mesh.dp_group
        and device_mesh["tp"].get_group() is mesh.tp_group,
        "own groups": mesh.world_group not in (mesh.dp_group, mesh.tp_group),
        "local": shards.to_local(),
        "full": shards.full_tensor(),
    }


@pytest.mark.parametrize(("dp", "tp"), MESHES)
def test_the_device_mesh_has_both_axes_and_carries_dtensors(dp, tp):
    for rank, found in enumerate(run_on_mesh(device_mesh_of, dp=dp, tp=tp)):
        at = Layout(dp=dp, tp=tp).coordinates(rank)
        assert found["names"] == ("dp", "tp")
        assert found["ranks"] == [[d * tp + t for t in range(tp)] for d in range(dp)]
        assert found["coordinate"] == [at.dp_rank, at.tp_rank]
        assert found["same groups"] and found["own groups"]
        whole = torch.arange(8.0).view(2, 4)
        assert torch.equal(found["full"], whole)
        rows = whole.chunk(dp)[at.dp_rank] if at.dp_rank < len(whole.chunk(dp)) else whole[:0]
        assert torch.equal(found["local"], rows.chunk(tp, dim=1)[at.tp_rank])


def wait_in_vain(mesh, axis):
    """Rank 0 waits in a collective of `axis` that no other rank joins, on a mesh with a time-out of a second."""
    hasty = build_mesh(mesh.layout, device=CPU, timeout=timedelta(seconds=1))
    seconds = 0.0
    if mesh.rank == 0:
        start = time.monotonic()
        with pytest.raises(RuntimeError, match=r"(?i)timed out|timeout"):
            dist.all_reduce(torch.ones(1), group=hasty.device_mesh.get_group(axis))
        seconds = time.monotonic() - start
    dist.barrier()  # keeps the peers, on the default group with its own time-out
    return seconds


@pytest.mark.parametrize(("axis", "dp", "tp"), [("tp", 2, 2), ("dp", 2, 2), ("tp", 1, 2), ("dp", 2, 1)])
def test_the_groups_of_both_axes_obey_the_time_out(axis, dp, tp):
    """Also where the axis is the whole world, where torch would reuse the default group and its time-out."""
    seconds, *_ = run_on_mesh(wait_in_vain, axis, dp=dp, tp=tp, timeout=60, fresh=True)
    assert 0.9 < seconds < 30  # of torch's own 1,800


def build_without_a_peer(mesh):
    seconds = 0.0
    if mesh.rank == 0:
        start = time.monotonic()
        with pytest.raises(RuntimeError, match=r"(?i)timed out|timeout"):
            build_mesh(mesh.layout, device=CPU, timeout=timedelta(seconds=1))
        seconds = time.monotonic() - start
    dist.barrier()
    return seconds


def test_a_peer_that_never_builds_its_mesh_is_not_waited_for():
    seconds, _ = run_on_mesh(build_without_a_peer, tp=2, timeout=60, fresh=True)
    assert 0.9 < seconds < 30  # of torch's own 1,800


def build_another(mesh, dp, tp):
    build_mesh(Layout(dp=dp, tp=tp), device=CPU)


def test_a_world_of_another_size_is_refused_with_the_numbers():
    message = (
        r"ValueError: a 2x2 \(dp x tp\) mesh needs dp \* tp = 2 \* 2 = 4 ranks and the world has 2: start 4 workers, "
        r"or choose dp and tp whose product is 2\."
    )
    with pytest.raises(MeshError, match=message):
        run_on_mesh(build_another, 2, 2, dp=2)


def close_twice_made(mesh):
    mesh.close()
    again = build_mesh(mesh.layout, device=CPU)
    x = torch.ones(1)
    dist.all_reduce(x, group=again.tp_group)
    return mesh.owns_world, dist.is_initialized(), x.item()


def test_close_leaves_a_default_group_that_others_made():
    assert run_on_mesh(close_twice_made, tp=2, fresh=True) == [(False, True, 2.0)] * 2


@pytest.fixture
def alone(monkeypatch):
    """This process without a launcher's environment, and without a process group afterwards."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    yield monkeypatch
    if dist.is_initialized():
        dist.destroy_process_group()


def test_one_process_needs_no_launcher_and_close_ends_what_was_made(alone):
    mesh = build_mesh(Layout(dp=1, tp=1), device=CPU)
    assert mesh.owns_world and mesh.device == CPU
    assert (mesh.rank, mesh.dp_rank, mesh.tp_rank) == (0, 0, 0)
    mesh.close()
    assert not dist.is_initialized()
    mesh.close()
    with pytest.raises(RuntimeError, match="the mesh is closed"):
        _ = mesh.world_group


def test_the_world_is_joined_through_the_environment(alone):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "0")):
        alone.setenv(name, value)
    mesh = build_mesh(Layout(dp=1, tp=1), device=CPU)
    assert dist.get_backend() == "gloo" and mesh.owns_world
    mesh.close()


def test_several_processes_need_a_launcher(alone):
    with pytest.raises(
        ValueError, match=r"2x2 .* needs 4 processes.*WORLD_SIZE is not set.*torchrun --nproc-per-node 4"
    ):
        build_mesh(Layout(dp=2, tp=2), device=CPU)


def test_a_launcher_with_too_few_processes_is_refused_before_any_rendezvous(alone):
    alone.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"dp \* tp = 1 \* 4 = 4 ranks and the world has 2"):
        build_mesh(Layout(dp=1, tp=4), device=CPU)
    assert not dist.is_initialized()
