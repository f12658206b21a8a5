from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tp2d_data.rows.collate import EMPTY
from tp2d_data.sampling.mixture import Mixture
from tp2d_data.sampling.permutation import order
from tp2d_data.sampling.sampler import Sampler
from tp2d_data.sampling.sharding import Sharding


def sampler(num_rows, *, dp_rank=0, dp_size=1, batch=2, seed=42, **options):
    sharding = Sharding(batch_size_per_gpu=batch, dp_rank=dp_rank, dp_size=dp_size, seed=seed, **options)
    return Sampler(Mixture([range(num_rows)], sharding=sharding))


def numbers(rows):
    """The row numbers of every batch of a sampler."""
    return [picks.number for picks in rows]


def global_batches(num_rows, *, dp_size, batch, seed=42, epoch=0, state=None):
    """Every global batch of an epoch as one array, the ranks' rows side by side."""
    ranks = [sampler(num_rows, dp_rank=rank, dp_size=dp_size, batch=batch, seed=seed) for rank in range(dp_size)]
    for rank in ranks:
        rank.set_epoch(epoch)
        if state is not None:
            rank.load_state_dict(state)
    return [np.concatenate(rows) for rows in zip(*map(numbers, ranks), strict=True)]


@given(
    num_rows=st.integers(0, 200),
    dp_size=st.integers(1, 6),
    batch=st.integers(1, 5),
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 100),
)
def test_ranks_partition_the_epoch(num_rows, dp_size, batch, seed, epoch):
    """Every row at most once, and together exactly the first floor(N / G) * G rows of the order, in that order."""
    total = dp_size * batch
    batches = global_batches(num_rows, dp_size=dp_size, batch=batch, seed=seed, epoch=epoch)
    seen = np.concatenate([np.zeros(0, np.int64), *batches])
    assert seen.tolist() == order(num_rows, seed, epoch)[: num_rows // total * total].tolist()
    assert len(batches) == len(sampler(num_rows, dp_size=dp_size, batch=batch))
    assert len(set(seen.tolist())) == len(seen)


@given(data=st.data(), num_rows=st.integers(24, 200), epoch=st.integers(0, 3))
def test_resumes_on_another_dp_size(data, num_rows, epoch):
    """With 12 rows a global batch, whatever the ranks before and after a stop, the global batches are the same."""
    before, after = (data.draw(st.sampled_from([1, 2, 3, 4, 6, 12])) for _ in range(2))
    whole = global_batches(num_rows, dp_size=before, batch=12 // before, epoch=epoch)
    stop = data.draw(st.integers(0, len(whole)))
    state = {"epoch": epoch, "samples": stop * 12, "data": ""}
    rest = global_batches(num_rows, dp_size=after, batch=12 // after, epoch=epoch, state=state)
    assert np.array_equal(np.array(whole[stop:]), np.array(rest))


def test_resumes_with_another_global_batch():
    """Nothing is lost or repeated when the global batch changes from 4 to 6 in the middle of an epoch."""
    first = sampler(22, batch=4)
    seen = np.concatenate(numbers(islice(first, 2)))
    second = sampler(22, batch=6)
    second.load_state_dict(first.state_dict())
    assert np.concatenate([seen, *numbers(second)]).tolist() == order(22, 42, 0)[:20].tolist()


def test_a_padded_last_batch_has_every_row_and_empty_ones():
    """10 rows in batches of 4 over two ranks: the third batch has the last two rows and two empty ones."""
    ranks = [sampler(10, dp_rank=rank, dp_size=2, last_batch="pad") for rank in range(2)]
    batches = [numbers(rank) for rank in ranks]
    assert [len(rank) for rank in ranks] == [len(mine) for mine in batches] == [3, 3]
    assert np.concatenate(batches[0] + batches[1]).tolist().count(EMPTY) == 2
    assert sorted(np.concatenate(batches[0] + batches[1]).tolist())[2:] == list(range(10))
    assert ranks[0].state_dict() == {"epoch": 0, "samples": 10, "data": ""}


def test_position_counts_what_was_handed_out():
    one = sampler(10, dp_size=2, dp_rank=1, batch=2)
    assert one.state_dict() == {"epoch": 0, "samples": 0, "data": ""}
    positions = [one.state_dict()["samples"] for _ in one]
    assert positions == [4, 8]
    assert one.state_dict() == {"epoch": 0, "samples": 8, "data": ""}


def test_set_epoch_keeps_a_loaded_position_of_that_epoch_only():
    one = sampler(10)
    one.load_state_dict({"epoch": 3, "samples": 4, "data": ""})
    one.set_epoch(3)
    assert len(list(one)) == 3
    assert len(list(one)) == 5  # the position is used once: the next iteration is a whole epoch
    one.load_state_dict({"epoch": 3, "samples": 4, "data": ""})
    one.set_epoch(4)
    assert len(list(one)) == 5


def test_finished_epoch_resumes_with_nothing_left():
    one = sampler(5)
    list(one)
    other = sampler(5)
    other.load_state_dict(one.state_dict())
    assert list(other) == []
    other.set_epoch(1)
    assert len(list(other)) == 2


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"epoch": 0}, "has the keys epoch, samples, data; this one has \\['epoch'\\]"),
        (
            {"epoch": 0, "samples": 0, "data": "x"},
            "belongs to other rows \\(x, here \\): the files, the tokenizer, the seed",
        ),
        ({"epoch": -1, "samples": 0, "data": ""}, "epoch must be at least 0, not -1"),
        ({"epoch": 0, "samples": 11, "data": ""}, "data position 11 is outside the epoch's 10 rows"),
        ({"epoch": 0, "samples": "4", "data": ""}, "samples must be a whole number, not '4'"),
    ],
)
def test_load_state_dict_refuses(state, message):
    with pytest.raises(ValueError, match=message):
        sampler(10).load_state_dict(state)
