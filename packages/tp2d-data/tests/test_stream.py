"""Streams: the same guarantees as corpora of known size, with a few blocks on disk."""

import json
import shutil
from itertools import islice

import pytest
import torch
from tp2d_data import TooFewRows, create_dataloader
from tp2d_data.sampling import stream as stream_module
from tp2d_data.tokens.cache import open_tokens


@pytest.fixture
def stream(tmp_path, words, monkeypatch):
    """A stream over text files where row i is `w<i> <eos> w<i>`; a group has 4 documents, a block 2 groups."""
    monkeypatch.setattr("tp2d_data.tokens.cache._BATCH_RECORDS", 4)

    def make(*sizes, **options):
        paths = [tmp_path / f"corpus-{i}-{size}.txt" for i, size in enumerate(sizes)]
        for i, (path, size) in enumerate(zip(paths, sizes, strict=True)):
            if path.exists():
                continue
            path.write_text("".join(f"w{200 * i + row} <eos> w{200 * i + row}\n" for row in range(size)))
        sharding = {"batch_size_per_gpu": 2, "dp_rank": 0, "dp_size": 1}
        given = {"seq_length": 4, "dataset_percentage": 100, "packing": "pad", "block_tokens": 20, **sharding}
        names = [str(path) for path in paths]
        cache = tmp_path / options.pop("cache", "cache")
        return create_dataloader(words, names, streaming=True, cache_dir=cache, **(given | options))

    return make


def rows_of(batches):
    return [int(row[0]) - 2 for batch in batches for row in batch["input_ids"]]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_is_every_document_once_shuffled_within_blocks(stream, workers):
    seen = rows_of(stream(40, num_workers=workers))
    assert sorted(seen) == list(range(40)) and seen != list(range(40))
    assert [sorted(seen[i : i + 8]) for i in range(0, 40, 8)] == [list(range(i, i + 8)) for i in range(0, 40, 8)]


def test_epochs_and_seeds_differ_and_repeat(stream):
    loader = stream(40)
    epochs = []
    for epoch in (0, 1, 0):
        loader.sampler.set_epoch(epoch)
        epochs.append(rows_of(loader))
    assert epochs[0] == epochs[2] != epochs[1]
    assert rows_of(stream(40, seed=1)) != epochs[0]


@pytest.mark.parametrize("weights", [None, [3, 1]])
@pytest.mark.parametrize("stop", [0, 1, 3, 5])
def test_resumed_on_other_ranks_with_the_very_next_sample(stream, stop, weights):
    """Three global batches of 4 on one rank, then on two: as one rank would have gone on, over block boundaries."""
    sizes = (30,) if weights is None else (30, 20)
    whole = stream(*sizes, batch_size_per_gpu=4, dataset_weights=weights)
    expected = rows_of(whole)
    before = stream(*sizes, batch_size_per_gpu=4, dataset_weights=weights)
    list(islice(before, stop))
    state = json.loads(json.dumps(before.state_dict()))
    ranks = [stream(*sizes, dp_rank=rank, dp_size=2, dataset_weights=weights, cache=f"c{rank}") for rank in range(2)]
    for rank in ranks:
        rank.load_state_dict(state)
        rank.sampler.set_epoch(0)
    rest = [row for pair in zip(*ranks, strict=True) for row in rows_of(pair)]
    assert rest == expected[4 * stop :]


def test_weights_are_shares_of_the_samples(stream):
    """300 samples at 3 : 1 over sources that each begin again: 225 of the first, give or take five deviations (38)."""
    loader = stream(10, 180, dataset_weights=[3, 1], batch_size_per_gpu=1)
    seen = rows_of(islice(loader, 300))
    first = [row for row in seen if row < 200]
    assert 187 < len(first) < 263
    assert [sorted(first[i : i + 10]) for i in range(0, 180, 10)] == [list(range(10))] * 18
    assert len(set(seen) - set(first)) == len(seen) - len(first)  # of the large one no row twice


def test_few_blocks_stay_on_disk(stream, tmp_path):
    assert len(rows_of(stream(200))) == 200
    blocks = [path for path in (tmp_path / "cache" / "tokens").iterdir() if path.is_dir()]
    assert len(blocks) <= 5  # three used up, the one in use, and the next


@pytest.mark.parametrize(("rule", "batches"), [("drop", 7), ("pad", 8)])
def test_the_last_batch(stream, rule, batches):
    """30 rows in batches of 4: the last two are left out, or come with two rows that count nothing."""
    loader = stream(30, batch_size_per_gpu=4, last_batch=rule)
    found = list(loader)
    assert len(found) == batches
    assert sum(int((batch["labels"] != -100).sum()) for batch in found) == 3 * (28 if rule == "drop" else 30)


def test_packed_blocks(stream):
    batch = next(iter(stream(40, packing="best_fit", seq_length=12)))
    assert batch["position_ids"].tolist() == [[0, 1, 2] * 4] * 2
    assert batch["input_ids"].dtype == torch.int64


def test_a_stream_has_no_length(stream):
    with pytest.raises(TypeError, match="a stream has no length"):
        len(stream(10))


def test_refusals(stream):
    with pytest.raises(ValueError, match="streaming 2 datasets needs dataset_weights, 2 numbers"):
        stream(10, 10)
    loader = stream(10)
    with pytest.raises(ValueError, match=r"has the keys epoch, samples, cursors, data; this one has \['epoch'\]"):
        loader.load_state_dict({"epoch": 0})
    with pytest.raises(ValueError, match="belongs to other rows"):
        loader.load_state_dict(stream(10, seed=3).state_dict())


def test_nothing_to_stream(tmp_path, words):
    (tmp_path / "a.txt").write_text("w0\nw1\n")
    given = {"dataset_percentage": 100, "streaming": True, "cache_dir": tmp_path / "cache"}
    with pytest.raises(TooFewRows, match=r"a.txt gives no row"):
        next(iter(create_dataloader(words, str(tmp_path / "a.txt"), 8, 1, 0, 1, **given)))


def test_a_block_that_another_job_withdrew_is_made_again(stream, tmp_path, monkeypatch):
    """The other job removes the block between this one's look and its opening, once."""
    real, times = stream_module.open_rows, []

    def open_rows(tokens, *args, **options):
        times.append(tokens.key)
        if len(times) == 1:
            shutil.rmtree(tmp_path / "cache" / "tokens" / tokens.key)
            return open_tokens(tmp_path / "cache" / "tokens" / tokens.key)
        return real(tokens, *args, **options)

    monkeypatch.setattr(stream_module, "open_rows", open_rows)
    assert sorted(rows_of(stream(16))) == list(range(16)) and times[0] == times[1]


def test_a_document_that_cannot_be_read_is_told_where_it_stands(tmp_path, words):
    (tmp_path / "a.jsonl").write_text('{"text": "w0 w1"}\n{"text": 5}\n')
    given = {"dataset_percentage": 100, "streaming": True, "cache_dir": tmp_path / "cache"}
    with pytest.raises(ValueError, match=r"a.jsonl, line 2: field 'text' holds a int"):
        next(iter(create_dataloader(words, str(tmp_path / "a.jsonl"), 8, 1, 0, 1, **given)))
