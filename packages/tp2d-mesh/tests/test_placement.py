import pytest
from hypothesis import given
from hypothesis import strategies as st
from tp2d_mesh import Layout
from tp2d_mesh.placement import check_capacity, check_tp_groups, placeable_ranks, rank_table, split_tp_groups

TWO_BY_TWO = Layout(dp=2, tp=2)


def test_rank_table():
    table = rank_table(["a", "a", "b", "b"], layout=TWO_BY_TWO)
    assert table == "dp 0: rank 0 on a, rank 1 on a\ndp 1: rank 2 on b, rank 3 on b"


def test_groups_inside_nodes_are_accepted():
    check_tp_groups(["a", "a", "b", "b"], layout=TWO_BY_TWO)
    check_tp_groups(["a"] * 4, layout=TWO_BY_TWO)


def test_a_group_on_two_nodes_is_refused_with_the_rank_table():
    """Three and one: what a packing scheduler makes of four workers on two nodes of three slots."""
    nodes = ["a", "a", "a", "b"]
    assert split_tp_groups(nodes, layout=TWO_BY_TWO) == [(2, 3)]
    with pytest.raises(ValueError) as caught:
        check_tp_groups(nodes, layout=TWO_BY_TWO)
    sentence, *table = str(caught.value).splitlines()
    assert sentence == (
        "a 2x2 (dp x tp) mesh has 1 of 2 tp groups on more than one node (ranks [2, 3]): free 2 slots on one node for "
        "each group, or choose a smaller tp."
    )
    assert table == ["dp 0: rank 0 on a, rank 1 on a", "dp 1: rank 2 on a, rank 3 on b"]


@pytest.mark.parametrize("ask", [rank_table, split_tp_groups, check_tp_groups])
def test_a_list_of_another_length_is_refused(ask):
    with pytest.raises(ValueError, match=r"a 2x2 \(dp x tp\) mesh has 4 ranks and nodes were given for 3\."):
        ask(["a", "a", "b"], layout=TWO_BY_TWO)


def test_capacity_counts_whole_tp_groups_on_a_node():
    assert placeable_ranks({"a": 3, "b": 3}, tp=2) == 4
    check_capacity({"a": 3, "b": 3}, layout=TWO_BY_TWO)
    check_capacity({"a": 3, "b": 3}, layout=Layout(dp=6, tp=1))


def test_slots_that_cannot_hold_the_groups_are_refused_with_the_numbers():
    expected = (
        r"a 1x4 \(dp x tp\) mesh needs 4 slots in runs of tp=4 on one node and the free slots \(a: 3, b: 3\) hold 0: "
        r"free more, or choose another dp or tp\."
    )
    with pytest.raises(ValueError, match=expected):
        check_capacity({"a": 3, "b": 3}, layout=Layout(dp=1, tp=4))
    with pytest.raises(ValueError, match=r"the free slots \(no nodes\) hold 0"):
        check_capacity({}, layout=TWO_BY_TWO)


@given(st.lists(st.integers(0, 9), max_size=5), st.integers(1, 4))
def test_capacity_is_what_filling_the_nodes_group_by_group_gives(slots, tp):
    filled = 0
    for free in slots:
        while free >= tp:
            free -= tp
            filled += tp
    assert placeable_ranks({str(node): free for node, free in enumerate(slots)}, tp=tp) == filled
