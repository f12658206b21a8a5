import numpy as np
import pytest
from tp2d_data import load_tokenizer
from tp2d_data.examples import Task
from tp2d_data.packing import Packing
from tp2d_data.records import Record
from tp2d_data.windows import Windows, batches, empty_batch

PAD = {"packing": Packing(mode="pad", seq_length=4), "pad_token_id": 1}


def make(words, **options):
    given = {"tokenizer": load_tokenizer(words), "task": Task(), "append_eos": False}
    return Windows(**(given | {"packing": PAD["packing"]} | options))


def records(count):
    """Record i is w<i> w<i>, of two tokens; its ids are i + 2."""
    return (Record(f"record {i}", (f"w{i} w{i}",)) for i in range(count))


def order(windows, count, **options):
    """The documents in the order of the rows."""
    places = windows.places(records(count), **({"key": (42, 0), "share": 0} | options))
    return [int(rows.tokens.ids[rows.tokens.offsets[row]]) - 2 for rows, row in places]


def test_each_row_comes_once_and_in_its_window(words):
    """Records are tokenised 256 at a time, which is also the least a window has: 512 tokens."""
    windows = make(words, window_tokens=512)
    found = order(windows, 700)
    assert [sorted(found[at : at + 256]) for at in (0, 256, 512)] == [
        list(range(256)),
        list(range(256, 512)),
        list(range(512, 700)),
    ]
    assert found != sorted(found) and windows.read == windows.rows == 700


def test_the_order_is_one_of_seed_epoch_and_share(words):
    first = order(make(words), 50)
    assert first == order(make(words), 50)
    others = [{"key": (42, 1)}, {"key": (43, 0)}, {"share": 1}]
    assert all(order(make(words), 50, **other) != first for other in others)


def test_what_is_left_out_is_counted(words):
    windows = make(words)
    texts = ["w1 w2", "", None, "w3", "w4 w5"]
    places = list(windows.places([Record("here", (text,)) for text in texts], key=(0, 0), share=0))
    assert (windows.read, len(places)) == (5, 2) and sum(windows.dropped.values()) == 3


def test_a_window_without_rows_is_passed_over(words):
    windows = make(words, window_tokens=1)
    some = [Record("here", ("w1 w1" if i >= 256 else "",)) for i in range(300)]
    assert len(list(windows.places(some, key=(0, 0), share=0))) == 44
    assert not list(make(words).places([], key=(0, 0), share=0))


def test_records_are_read_as_they_are_needed(words):
    read = iter(records(2000))
    next(make(words, window_tokens=1).places(read, key=(0, 0), share=0))
    assert next(read).where == "record 256"


@pytest.mark.parametrize(("fill", "sizes"), [(False, [3, 3, 3]), (True, [3, 3, 3, 1])])
def test_batches_span_windows_and_the_last_is_filled_or_left_out(words, fill, sizes):
    windows = make(words, window_tokens=1)
    some = [Record("here", (f"w{i} w{i}" if i % 60 == 0 else "",)) for i in range(600)]
    places = windows.places(some, key=(0, 0), share=0)
    found = list(batches(places, 3, fill=fill, **PAD))
    assert [int((batch["attention_mask"][:, 0]).sum()) for batch in found] == sizes
    ids = np.concatenate([batch["input_ids"][:, 0][batch["attention_mask"][:, 0] > 0] for batch in found])
    assert set(ids.tolist()) <= {i + 2 for i in range(0, 600, 60)} and len(set(ids.tolist())) == sum(sizes)


def test_an_empty_batch_counts_nothing(words):
    batch = empty_batch(2, **PAD)
    assert batch["input_ids"].shape == (2, 4) and (batch["labels"] == -100).all() and not batch["attention_mask"].any()
