import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tp2d_data.rows.packing import (
    JoinedTable,
    PackedTable,
    Packing,
    PaddedTable,
    cut,
    open_packed,
    write_packed,
)

LENGTHS = st.lists(st.integers(2, 40), min_size=1, max_size=60)


def offsets_of(lengths):
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def packed(tmp_path_factory, lengths, seq_length, **options):
    folder = tmp_path_factory.mktemp("packed")
    write_packed(folder, offsets_of(lengths), packing=Packing(mode="best_fit", seq_length=seq_length), **options)
    return open_packed(folder)


def predicted(table):
    """(token, context's first token) of every token that is predicted: not the first of its piece."""
    pieces = table.pieces(np.arange(len(table)))
    return [(at, b) for b, n in zip(pieces.begins, pieces.lengths, strict=True) for at in range(b + 1, b + n)]


@given(lengths=LENGTHS, seq_length=st.integers(2, 20), mode=st.sampled_from(["concat", "best_fit"]))
def test_every_token_is_predicted_once_within_its_document(tmp_path_factory, lengths, seq_length, mode):
    """Nothing is lost and nothing counts twice: each token but a document's first is predicted once, from its own."""
    offsets = offsets_of(lengths)
    joined = JoinedTable(offsets=offsets, seq_length=seq_length)
    table = joined if mode == "concat" else packed(tmp_path_factory, lengths, seq_length)
    document = np.repeat(np.arange(len(lengths)), lengths)
    tokens = predicted(table)
    assert sorted(at for at, _ in tokens) == sorted(set(range(offsets[-1])) - set(offsets[:-1].tolist()))
    assert all(document[at] == document[begin] for at, begin in tokens)
    pieces = table.pieces(np.arange(len(table)))
    filled = np.add.reduceat(pieces.lengths, np.cumsum(pieces.counts) - pieces.counts)
    assert filled.max() <= seq_length and filled.sum() == table.filled and table.cut_tokens == 0


@given(lengths=LENGTHS, seq_length=st.integers(40, 60))
def test_best_fit_keeps_documents_whole(tmp_path_factory, lengths, seq_length):
    pieces = (table := packed(tmp_path_factory, lengths, seq_length)).pieces(np.arange(len(table)))
    assert sorted(pieces.lengths.tolist()) == sorted(lengths)


def test_windows_bound_what_is_packed_together(tmp_path_factory, monkeypatch):
    """Packed in windows of 4 documents, each row's documents are of one window, and all are there."""
    monkeypatch.setattr("tp2d_data.rows.packing.WINDOW", 4)
    lengths = [5, 3, 2, 7, 6, 2, 2, 4, 3, 3]
    table = packed(tmp_path_factory, lengths, 10)
    offsets = offsets_of(lengths)
    for row in range(len(table)):
        begins = table.pieces(np.array([row])).begins
        assert len({int(np.searchsorted(offsets, begin)) // 4 for begin in begins}) == 1
    assert table.filled == sum(lengths)


def test_documents_with_context_are_cut_to_one_row_and_left_out_without_a_label(tmp_path_factory):
    """A chat's rest would stand without its question. Rows of 5 keep 5 of 9, and 4 of 4; the third has no label."""
    keep = np.array([True, True, False])
    table = packed(tmp_path_factory, [9, 4, 6], 5, keep=lambda start, stop: keep[start:stop])
    pieces = table.pieces(np.arange(len(table)))
    assert sorted(zip(pieces.begins.tolist(), pieces.lengths.tolist(), strict=True)) == [(0, 5), (9, 4)]
    assert (table.filled, table.cut_tokens) == (9, 10)


def test_pad_is_a_document_a_row():
    table = PaddedTable(offsets=offsets_of([3, 9, 2]), seq_length=4)
    pieces = table.pieces(np.array([2, 1]))
    assert (pieces.begins.tolist(), pieces.lengths.tolist(), pieces.counts.tolist()) == ([12, 3], [2, 4], [1, 1])
    assert (len(table), table.filled, table.cut_tokens) == (3, 9, 5)


def test_rows_may_be_asked_for_in_any_order():
    table = PackedTable(
        begins=np.array([0, 7, 3]),
        lengths=np.array([3, 2, 4], np.int32),
        rows=np.array([0, 2, 3]),
        filled=9,
        cut_tokens=0,
    )
    pieces = table.pieces(np.array([1, 0, 1]))
    assert pieces.begins.tolist() == [3, 0, 7, 3] and pieces.counts.tolist() == [1, 2, 1]


def test_cut_shares_a_token():
    begins, lengths = cut(np.array([0, 10]), np.array([10, 2]), 4)
    assert (begins.tolist(), lengths.tolist()) == ([0, 3, 6, 10], [4, 4, 4, 2])


def test_nothing_to_pack(tmp_path_factory):
    assert len(packed(tmp_path_factory, [], 8)) == 0
    assert len(JoinedTable(offsets=np.zeros(1, np.int64), seq_length=8)) == 0


def test_damage_is_refused(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    with pytest.raises(ValueError, match=rf"the cached rows in {folder} are damaged .*; delete that folder"):
        open_packed(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "tight"}, "packing must be pad, concat, best_fit, not 'tight'"),
        ({"seq_length": 1}, "seq_length must be at least 2, not 1"),
    ],
)
def test_refusals(change, message):
    with pytest.raises(ValueError, match=message):
        Packing(**({"mode": "pad", "seq_length": 8} | change))
