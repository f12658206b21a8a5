"""One process that leads itself; four real ranks are in test_ray.py."""

import numpy as np
import pytest
import torch.distributed as dist
from tp2d_data import load_tokenizer
from tp2d_data.examples import Task
from tp2d_data.packing import Packing
from tp2d_data.records import Record
from tp2d_data.relay import RelaySampler, Share, Wire
from tp2d_data.sampler import Sharding
from tp2d_data.windows import Windows

SHARDING = {"batch_size_per_gpu": 2, "dp_rank": 0, "dp_size": 2, "seed": 42}


@pytest.fixture
def wire():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    group = dist.group.WORLD
    yield Wire(tp_group=group, dp_group=group, names=("input_ids", "labels"), shape=(2, 3), drop=False)
    dist.destroy_process_group()


def make_share(words, records, *, skip=0, prefetch=1, last_batch="drop"):
    windows = Windows(
        tokenizer=load_tokenizer(words),
        task=Task(),
        append_eos=False,
        packing=Packing(mode="pad", seq_length=4),
    )
    sharding = Sharding(**SHARDING, last_batch=last_batch)
    return Share(windows, records, sharding=sharding, epoch=0, skip=skip, pad_token_id=1, prefetch=prefetch)


def records(count):
    return (Record(f"record {i}", (f"w{i} w{i}",)) for i in range(count))


def drawn(share):
    """The first ids of all rows of all batches."""
    found = []
    while (batch := share.next()) is not None:
        found += batch["input_ids"][:, 0].tolist()
    return found


@pytest.mark.parametrize("prefetch", [0, 1, 5])
def test_a_share_gives_whole_batches_and_counts_the_rest(words, prefetch):
    share = make_share(words, records(9), prefetch=prefetch)
    found = drawn(share)
    assert len(found) == 8 == len(set(found)) and share.rest(8) == 1
    share.close()


def test_a_share_goes_on_where_it_was(words):
    whole, rest = drawn(make_share(words, records(9))), make_share(words, records(9), skip=4)
    assert drawn(rest) == whole[4:] and rest.rest(8) == 1


def test_a_share_that_is_left_early_counts_by_reading_on(words):
    share = make_share(words, records(600), prefetch=3)
    share.next()
    assert share.rest(2) == 598
    share.close()


def test_a_bad_record_is_raised_where_its_batch_is_due(words):
    bad = [*records(300), Record("record 300", (7,))]
    share = make_share(words, bad, prefetch=0)
    with pytest.raises(ValueError, match="record 300: field 'text' holds a int, not text"):
        drawn(share)
    share.close()


def test_a_message_arrives_as_it_was_sent(wire):
    batch = {"labels": np.arange(6).reshape(2, 3), "input_ids": -np.arange(6).reshape(2, 3)}
    assert wire.lead(batch, empty={}) is batch
    assert wire.lead(None, empty={}) is None
    assert wire.sum(3) == 3 and wire.sum(None) == 0


def test_positions():
    sampler = RelaySampler(Sharding(**SHARDING), data="these")
    assert sampler.begin() == 0 and sampler.hand_out(4, "batch") == "batch"
    state = sampler.state_dict()
    assert state == {"epoch": 0, "samples": 4, "dp_size": 2, "data": "these"}
    other = RelaySampler(Sharding(**SHARDING), data="these")
    other.load_state_dict(state)
    other.set_epoch(0)
    assert other.state_dict() == state and (other.begin(), other.begin()) == (4, 0)
    other.load_state_dict(state)
    other.set_epoch(1)
    assert other.begin() == 0
    with pytest.raises(ValueError, match="samples must be at least 0, not -1"):
        other.load_state_dict(state | {"samples": -1})
