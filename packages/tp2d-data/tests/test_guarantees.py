"""The package's promise as one property, over random corpora, sizes, ranks, threads and interruptions.

Every document once per epoch (`last_batch="pad"`; under `drop` all but the last partial batch), the same order on
every number of ranks, tp peers with equal batches, and positions that lead to the very next sample.
"""

import json
from itertools import islice

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tp2d_data import create_dataloader

GLOBAL = 12  # rows of a global batch, whatever the ranks
RANKS = st.sampled_from([1, 2, 3, 4, 6, 12])
CORPUS = st.lists(st.integers(2, 30), min_size=GLOBAL, max_size=120)
FAULTS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@pytest.fixture(autouse=True)
def small_groups(monkeypatch):
    """Groups of 5 documents, so that a stream of a hundred has many blocks."""
    monkeypatch.setattr("tp2d_data.tokens.cache._BATCH_RECORDS", 5)


class Job:
    """All data parallel ranks of a job over one corpus; document i has `lengths[i]` tokens, each of them w<i>."""

    def __init__(self, words, folder, lengths, **options):
        path = folder / f"{abs(hash(tuple(lengths)))}.txt"
        if not path.exists():
            path.write_text("".join(" ".join([f"w{i}"] * n) + "\n" for i, n in enumerate(lengths)))
        self._given = (words, str(path))
        self._options = {"seq_length": 16, "dataset_percentage": 100, "cache_dir": folder / "cache"} | options

    def loader(self, dp_rank, dp_size, *, workers=1, state=None, epoch=0):
        sharding = {"batch_size_per_gpu": GLOBAL // dp_size, "dp_rank": dp_rank, "dp_size": dp_size}
        loader = create_dataloader(*self._given, num_workers=workers, **sharding, **self._options)
        if state is not None:
            loader.load_state_dict(json.loads(state))
        loader.sampler.set_epoch(epoch)
        return loader

    def global_batches(self, dp_size, *, stop=None, **options):
        """The global batches of an epoch (up to `stop`), each one dict of tensors, and the position behind them."""
        ranks = [self.loader(rank, dp_size, **options) for rank in range(dp_size)]
        batches = [_joined(rows) for rows in zip(*(islice(rank, stop) for rank in ranks), strict=True)]
        states = {json.dumps(rank.state_dict()) for rank in ranks}
        assert len(states) == 1
        return batches, states.pop()


def _joined(batches):
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def _same(first, second):
    return len(first) == len(second) and all(
        torch.equal(one[name], other[name]) for one, other in zip(first, second, strict=True) for name in one
    )


@settings(max_examples=40, deadline=None, suppress_health_check=FAULTS)
@given(
    data=st.data(),
    lengths=CORPUS,
    before=RANKS,
    after=RANKS,
    workers=st.integers(0, 3),
    epoch=st.integers(0, 3),
    packing=st.sampled_from(["pad", "concat", "best_fit"]),
    streaming=st.booleans(),
)
def test_every_sample_once_in_one_order(
    words, tmp_path, data, lengths, before, after, workers, epoch, packing, streaming
):
    job = Job(words, tmp_path, lengths, packing=packing, last_batch="pad", streaming=streaming, block_tokens=200)
    whole, _ = job.global_batches(1, workers=0, epoch=epoch)
    again, _ = job.global_batches(before, workers=workers, epoch=epoch)
    assert _same(whole, again)

    stop = data.draw(st.integers(0, len(whole)))
    head, state = job.global_batches(before, workers=workers, epoch=epoch, stop=stop)
    rest, _ = job.global_batches(after, workers=3 - workers, epoch=epoch, state=state)
    assert _same(whole, head + rest)

    counted = torch.zeros(len(lengths), dtype=torch.int64)
    for batch in whole:
        labels = batch["labels"][:, 1:]  # the first of a row has nothing before it
        counted += torch.bincount(labels[labels >= 0] - 2, minlength=len(lengths))
    limit = 16 if packing == "pad" else 10**9
    assert counted.tolist() == [min(n, limit) - 1 for n in lengths]


@settings(max_examples=20, deadline=None, suppress_health_check=FAULTS)
@given(lengths=CORPUS, ranks=RANKS, streaming=st.booleans())
def test_drop_leaves_out_the_last_partial_batch_only(words, tmp_path, lengths, ranks, streaming):
    options = {"packing": "best_fit", "streaming": streaming, "block_tokens": 200}
    padded, _ = Job(words, tmp_path, lengths, last_batch="pad", **options).global_batches(1)
    if len(padded) == 1 and (padded[0]["labels"] == -100).all(dim=1).any():
        return  # fewer rows than one global batch are refused
    dropped, _ = Job(words, tmp_path, lengths, last_batch="drop", **options).global_batches(ranks)
    partial = bool((padded[-1]["labels"] == -100).all(dim=1).any())
    assert _same(dropped, padded[:-1] if partial else padded)


@settings(max_examples=20, deadline=None, suppress_health_check=FAULTS)
@given(lengths=CORPUS, rank=st.integers(0, 3), workers=st.integers(0, 3), streaming=st.booleans())
def test_tp_peers_have_equal_batches(words, tmp_path, lengths, rank, workers, streaming):
    job = Job(words, tmp_path, lengths, last_batch="pad", streaming=streaming, block_tokens=200)
    assert _same(list(job.loader(rank, 4, workers=workers)), list(job.loader(rank, 4, workers=3 - workers)))
