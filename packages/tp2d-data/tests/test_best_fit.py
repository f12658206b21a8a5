import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tp2d_data.rows.best_fit import best_fit


@given(lengths=st.lists(st.integers(1, 30), max_size=80))
def test_best_fit_is_best_fit_decreasing(lengths):
    """As few rows as the plain algorithm, piece by piece, puts them in."""
    order, rows = best_fit(np.array(lengths, dtype=np.int64), 30)
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [i for i, room in enumerate(rooms) if room >= length]
        if fitting:
            rooms[min(fitting, key=rooms.__getitem__)] -= length
        else:
            rooms.append(30 - length)
    assert sorted(order.tolist()) == list(range(len(lengths)))
    assert len(rows) - 1 == len(rooms)
