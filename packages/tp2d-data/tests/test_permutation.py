import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from tp2d_data.sampling.permutation import fractions, order, permute

KEY = st.integers(0, 2**64 - 1)


@given(size=st.integers(1, 3000), seed=KEY, epoch=KEY, stream=KEY)
def test_every_number_once(size, seed, epoch, stream):
    found = permute(np.arange(size), size, key=(seed, epoch), stream=stream)
    assert sorted(found.tolist()) == list(range(size))


@given(size=st.integers(1, 2**62), seed=KEY, positions=st.lists(st.integers(0, 2**62), min_size=1, max_size=20))
def test_parts_of_an_order_too_large_to_hold(size, seed, positions):
    """Asked for alone or together, a position gives the same number, inside the range, and no two the same."""
    some = np.unique(np.array(positions) % size)
    found = permute(some, size, key=(seed, 0))
    assert ((found >= 0) & (found < size)).all() and len(np.unique(found)) == len(some)
    assert [int(permute(np.array([one]), size, key=(seed, 0))[0]) for one in some] == found.tolist()


def test_places_are_uniform():
    """Each number stands at each place equally often over 4,000 epochs: chi-square of 36 cells, 25 degrees of freedom.

    52.6 is exceeded by a uniform shuffle in one of a thousand runs; the epochs are fixed, so the result is too.
    """
    places, numbers, epochs = np.arange(6), np.zeros((6, 6)), 4000
    for epoch in range(epochs):
        numbers[places, permute(places, 6, key=(7, epoch))] += 1
    expected = epochs / 6
    assert ((numbers - expected) ** 2 / expected).sum() < 52.6


def test_neighbours_are_torn_apart():
    """Of 100,000 rows in order, as few stay beside their neighbour as chance says: 2 expected, 12 is far out."""
    found = permute(np.arange(100_000), 100_000, key=(42, 0))
    assert (np.abs(np.diff(found)) == 1).sum() < 12
    assert abs(np.corrcoef(np.arange(100_000), found)[0, 1]) < 0.01


def test_streams_and_keys_differ():
    orders = {
        tuple(permute(np.arange(50), 50, key=key, stream=stream))
        for key in ((1, 0), (0, 1), (1, 1))
        for stream in (0, 1)
    }
    assert len(orders) == 6


def test_fractions_are_uniform_and_fixed():
    drawn = fractions(np.arange(100_000), key=(42, 0))
    assert drawn.min() >= 0 and drawn.max() < 1
    shares = np.bincount((drawn * 10).astype(int)) / 100_000
    assert np.abs(shares - 0.1).max() < 0.005  # five standard deviations of a share: sqrt(0.1 * 0.9 / 100,000) * 5
    assert np.array_equal(drawn[500:600], fractions(np.arange(500, 600), key=(42, 0)))


def test_order_is_written_in_stone():
    """Another NumPy, another machine or a rewrite that gives other orders would break every resumed run."""
    assert order(10, 42, 0).tolist() == [7, 6, 4, 8, 5, 2, 0, 1, 3, 9]
    assert order(10, 42, 1).tolist() == [8, 1, 2, 0, 5, 4, 6, 9, 7, 3]
    assert order(10, 2**64 - 1, 7).tolist() == [1, 4, 5, 2, 7, 9, 3, 8, 0, 6]


def test_order_differs_by_epoch_and_seed():
    orders = [order(100, seed, epoch).tolist() for seed in (0, 1, 2) for epoch in (0, 1, 2)]
    assert all(sorted(rows) == list(range(100)) for rows in orders)
    assert len({tuple(rows) for rows in orders}) == 9


def test_order_shuffles_evenly():
    """Over 2,000 epochs every row is first about as often as any other (a biased sort would show)."""
    first = np.bincount([order(4, 1, epoch)[0] for epoch in range(2000)], minlength=4)
    assert first.min() > 400 and first.max() < 600
