from collections import Counter

import numpy as np
import pytest
from tp2d_data.rows.collate import EMPTY
from tp2d_data.sampling.mixture import Mixture, shares
from tp2d_data.sampling.sharding import Sharding

ONE = Sharding(batch_size_per_gpu=1, dp_rank=0, dp_size=1, seed=1)


class Part(list):
    """Stands for the rows of a source: all a mixture asks of them is their number."""


def picked(mixture, epoch):
    picks = mixture.pick(np.arange(mixture.num_rows), epoch)
    return list(zip(picks.part.tolist(), picks.number.tolist(), strict=True))


def test_without_weights_every_row_once():
    mixture = Mixture([Part(range(3)), Part(range(5))], weights=None, sharding=ONE)
    assert sorted(picked(mixture, 4)) == [(0, i) for i in range(3)] + [(1, i) for i in range(5)]


def test_weights_are_shares_of_as_many_rows():
    """Of 100 rows the small source of 10 has 80 %, each of its rows 8 times; of the large one 20 of 90, none twice."""
    mixture = Mixture([Part(range(10)), Part(range(90))], weights=[4, 1], sharding=ONE)
    counts = Counter(picked(mixture, 0))
    assert mixture.num_rows == len(mixture) == 100
    assert {row: counts[0, row] for row in range(10)} == dict.fromkeys(range(10), 8)
    assert [count for (part, _), count in counts.items() if part] == [1] * 20


def test_a_source_shows_all_its_rows_before_it_repeats_one():
    """20 of 90 rows an epoch: four epochs show 80 of them once, and the fifth the last ten and ten again."""
    mixture = Mixture([Part(range(10)), Part(range(90))], weights=[4, 1], sharding=ONE)
    seen = Counter(row for epoch in range(5) for part, row in picked(mixture, epoch) if part)
    assert sum(seen.values()) == 100 and len(seen) == 90 and set(seen.values()) == {1, 2}


def test_empty_rows_stay_empty():
    mixture = Mixture([Part(range(2)), Part(range(2))], weights=[3, 1], sharding=ONE)
    assert mixture.pick(np.array([EMPTY, 0]), 0).number.tolist()[0] == EMPTY


@pytest.mark.parametrize(
    ("weights", "total", "expected"),
    [([1, 1, 1], 10, [4, 3, 3]), ([0.7, 0.3], 10, [7, 3]), ([1e-9, 1], 5, [0, 5]), ([2], 7, [7])],
)
def test_shares_are_whole_and_add_up(weights, total, expected):
    assert shares(weights, total).tolist() == expected
