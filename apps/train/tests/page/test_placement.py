"""The ranks by node, read from the table that tp2d-mesh writes."""

from pathlib import Path

import pytest
from tp2d_mesh import Layout
from tp2d_mesh.placement import rank_table
from tp2d_train.page.placement import placement_of, read_places

from apps.train.tests.page.written import facts, new_run, start


@pytest.mark.parametrize("layout", [Layout(dp=1, tp=1), Layout(dp=3, tp=2), Layout(dp=2, tp=8)], ids=str)
def test_the_table_of_the_mesh_is_read_back(layout: Layout) -> None:
    nodes = [f"node-{rank // 2}.cluster" for rank in range(layout.world_size)]
    groups = read_places(rank_table(nodes, layout=layout))
    assert groups is not None and [tuple(rank for rank, _ in group) for group in groups] == list(layout.tp_groups())
    assert [node for group in groups for _, node in group] == nodes


@pytest.mark.parametrize("table", ["", "x", "dp 0: rank 0", "dp 0: rank 0 on a, rank 1 on a\ndp 1: rank 2 on b"])
def test_what_is_no_table_is_not_drawn(table: str) -> None:
    assert read_places(table) is None


def test_ranks_stand_with_their_node(tmp_path: Path) -> None:
    """A tp group on two nodes has its place on both."""
    run, record = new_run(tmp_path)
    start(record, places=rank_table(["a", "a", "a", "b"], layout=Layout(dp=2, tp=2)))
    found = placement_of(facts(run))
    assert found is not None and (found.tp, found.ranks, found.mesh) == (2, 4, "2x2 (dp x tp)")
    drawn = {node.name: [(row.dp_rank, row.ranks) for row in node.replicas] for node in found.nodes}
    assert drawn == {"a": [(0, [0, 1]), (1, [2, None])], "b": [(1, [None, 3])]}


def test_a_run_that_has_not_started_has_no_placement(tmp_path: Path) -> None:
    assert placement_of(facts(new_run(tmp_path)[0])) is None
