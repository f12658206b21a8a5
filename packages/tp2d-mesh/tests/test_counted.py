"""Counting collectives: every way to call one, on a real mesh, compiled, and over the fake process group."""

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from tp2d_mesh import Mesh
from tp2d_mesh.testing import run_on_mesh
from tp2d_mesh.testing.counted import Collective, counted, fake_mesh

TOTALS = {
    ("all_gather", "dp"): (1, 2 * 6 * 4),
    ("all_gather", "tp"): (1, 2 * 6 * 8),
    ("all_reduce", "tp"): (3, (2 + 6 + 6) * 4),
    ("all_reduce", "world"): (1, 2 * 8),
    ("broadcast", "dp"): (1, 6 * 4),
    ("reduce_scatter", "dp"): (1, 6 * 2),
}
"""Of `every_way` on two axes of two ranks."""


class Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, group):
        ctx.group = group
        return funcol.wait_tensor(funcol.all_reduce(x, "sum", group))

    @staticmethod
    def backward(ctx, grad):
        return funcol.wait_tensor(funcol.all_reduce(grad.contiguous(), "sum", ctx.group)), None


def every_way(mesh: Mesh) -> list[Collective]:
    x = torch.ones(2, 3, requires_grad=True)
    with counted(mesh) as seen:
        dist.all_reduce(torch.ones(2, dtype=torch.float64), group=mesh.world_group)
        dist.all_reduce(torch.ones(2), group=mesh.tp_group)
        Summed.apply(x, mesh.tp_group).sum().backward()
        dist.all_gather_into_tensor(torch.empty(4, 3), torch.ones(2, 3), group=mesh.dp_group)
        funcol.wait_tensor(funcol.all_gather_tensor(torch.ones(6, dtype=torch.int64), 0, mesh.tp_group))
        dist.reduce_scatter_tensor(
            torch.empty(3, dtype=torch.bfloat16), torch.ones(6, dtype=torch.bfloat16), group=mesh.dp_group
        )
        dist.broadcast(torch.ones(6), group=mesh.dp_group, group_src=0)
        dist.barrier(group=mesh.tp_group)
    dist.all_reduce(torch.ones(2), group=mesh.tp_group)  # after the block
    assert seen.totals() == TOTALS
    assert seen.calls("all_reduce", axis="tp", shape=(2, 3)) == 2
    assert (seen.calls(), seen.size(axis="dp")) == (8, 2 * 24 + 24 + 12)
    return seen.collectives


def test_every_way_to_call_a_collective_is_counted_on_a_real_mesh_and_a_fake_one() -> None:
    """Shows an operator, a group or a size that is read wrongly, and a fake mesh that differs from a real one."""
    with fake_mesh(dp=2, tp=2) as mesh:
        expected = every_way(mesh)
    assert expected[0] == Collective(kind="all_reduce", axis="world", ranks=4, size=16, dtype=torch.float64, shape=(2,))
    for found in run_on_mesh(every_way, dp=2, tp=2):
        assert found == expected


def test_compiled_code_is_counted_as_it_runs() -> None:
    """Shows counting that makes torch fall back to eager, or that counts what is traced."""
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    with fake_mesh(dp=1, tp=2) as mesh:
        group = mesh.tp_group

        @torch.compile(backend=backend, fullgraph=True)
        def total(x):
            return funcol.wait_tensor(funcol.all_reduce(x, "sum", group)) * 2

        for _ in range(2):
            with counted(mesh) as seen:
                total(torch.ones(2, 3))
            assert seen.totals() == {("all_reduce", "tp"): (1, 24)}
    assert len(graphs) == 1


def test_groups_of_one_rank_are_listed_and_not_added_up() -> None:
    with fake_mesh(dp=1, tp=2) as mesh, counted(mesh) as seen:
        dist.all_reduce(torch.ones(2), group=mesh.dp_group)
        dist.all_reduce(torch.ones(2), group=mesh.world_group)
    assert seen.totals() == {("all_reduce", "world"): (1, 8)}
    assert [c.ranks for c in seen.collectives] == [1, 2]


def test_collectives_within_a_dtensor_are_counted() -> None:
    """Shows a DTensor's redistribution gone uncounted: torch calls it below the operator that the caller sees."""
    from torch.distributed.tensor import DTensor, Shard

    with fake_mesh(dp=1, tp=4) as mesh:
        local = DTensor.from_local(torch.ones(2, 3), mesh.device_mesh["tp"], [Shard(0)], run_check=False)
        with counted(mesh) as seen:
            local.softmax(dim=0)  # needs all rows
    assert seen.totals() == {("all_gather", "tp"): (1, 4 * 24)}


def test_a_collective_without_known_bytes_is_an_error() -> None:
    with (
        fake_mesh(dp=1, tp=2) as mesh,
        counted(mesh),
        pytest.raises(RuntimeError, match=r"c10d\.send.* does not know"),
    ):
        dist.send(torch.ones(2), dst=1)


def test_fake_mesh_is_any_rank_of_any_mesh() -> None:
    with fake_mesh(dp=128, tp=8, rank=1001) as mesh:
        assert (mesh.dp_rank, mesh.tp_rank) == (125, 1)
        assert dist.get_world_size(mesh.dp_group) == 128
        assert dist.get_rank(mesh.dp_group) == 125
        with pytest.raises(ValueError, match="without a process group"), fake_mesh(dp=1):
            pass
    assert not dist.is_initialized()
    with pytest.raises(ValueError, match="rank=4 is outside the layout"), fake_mesh(dp=2, tp=2, rank=4):
        pass


def test_a_collective_called_by_another_operator_is_an_error() -> None:
    """Shows one that compiled recomputation calls, out of sight, left out."""
    from torch._prims.rng_prims import run_and_save_rng_state

    x, ops = torch.ones(2), torch.ops
    with fake_mesh(dp=1, tp=2) as mesh, counted(mesh) as seen:
        run_and_save_rng_state(ops.aten.bernoulli.default, x)
        with pytest.raises(RuntimeError, match="does not see the collectives within"):
            run_and_save_rng_state(ops._c10d_functional.all_reduce.default, x, "sum", mesh.tp_group.group_name)
    assert seen.totals() == {}
