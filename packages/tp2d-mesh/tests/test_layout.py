import dataclasses
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tp2d_mesh import Coordinates, Layout

layouts = st.builds(lambda dp, tp: Layout(dp=dp, tp=tp), st.integers(1, 12), st.integers(1, 12))


def test_tp_is_innermost():
    layout = Layout(dp=2, tp=4)
    assert layout.tp_groups() == ((0, 1, 2, 3), (4, 5, 6, 7))
    assert layout.dp_groups() == ((0, 4), (1, 5), (2, 6), (3, 7))
    assert layout.coordinates(6) == Coordinates(dp_rank=1, tp_rank=2)
    assert layout.rank(dp_rank=1, tp_rank=2) == 6
    assert layout.world_size == 8
    assert str(layout) == "2x4 (dp x tp)"


@given(layouts)
def test_every_rank_has_one_place_in_one_group_of_each_axis(layout):
    ranks = range(layout.world_size)
    assert [layout.rank(**dataclasses.asdict(layout.coordinates(rank))) for rank in ranks] == list(ranks)
    for groups, size in ((layout.tp_groups(), layout.tp), (layout.dp_groups(), layout.dp)):
        assert all(len(group) == size for group in groups)
        assert sorted(rank for group in groups for rank in group) == list(ranks)
    for rank in ranks:
        at = layout.coordinates(rank)
        assert layout.tp_groups()[at.dp_rank][at.tp_rank] == rank
        assert layout.dp_groups()[at.tp_rank][at.dp_rank] == rank


@given(layouts)
def test_from_world_is_the_inverse(layout):
    assert Layout.from_world(layout.world_size, layout.tp) == layout


def test_a_world_that_tp_does_not_divide_is_refused_with_the_sizes_that_do():
    expected = (
        "world_size=6 is not a multiple of tp_size=4 (6 % 4 = 2): choose tp_size from [1, 2, 3, 6], or another number "
        "of workers."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        Layout.from_world(6, 4)


@pytest.mark.parametrize("size", [0, -1, 1.0, True, None, "2"])
def test_what_is_no_size_is_refused(size):
    message = re.escape(f"={size!r} is not a size: give a whole number of at least 1.")
    with pytest.raises(ValueError, match=f"^dp{message}"):
        Layout(dp=size, tp=1)
    with pytest.raises(ValueError, match=f"^tp{message}"):
        Layout(dp=1, tp=size)
    with pytest.raises(ValueError, match=f"^world_size{message}"):
        Layout.from_world(size, 1)
    with pytest.raises(ValueError, match=f"^tp_size{message}"):
        Layout.from_world(4, size)


def test_places_outside_the_layout_are_refused():
    layout = Layout(dp=2, tp=3)
    with pytest.raises(ValueError, match=r"rank=6 is outside the layout 2x3 \(dp x tp\): give a number from 0 to 5\."):
        layout.coordinates(6)
    with pytest.raises(ValueError, match=r"rank=-1 is outside"):
        layout.coordinates(-1)
    with pytest.raises(ValueError, match=r"dp_rank=2 is outside .* from 0 to 1\."):
        layout.rank(dp_rank=2, tp_rank=0)
    with pytest.raises(ValueError, match=r"tp_rank=3 is outside .* from 0 to 2\."):
        layout.rank(dp_rank=0, tp_rank=3)


def test_a_layout_is_a_value():
    layout = Layout(dp=2, tp=3)
    assert layout == Layout(dp=2, tp=3) and hash(layout) == hash(Layout(dp=2, tp=3))
    with pytest.raises(dataclasses.FrozenInstanceError):
        layout.dp = 3
