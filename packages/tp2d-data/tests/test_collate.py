"""What a batch is, token by token, for a corpus of three documents: 2 3 4, 5 6, 7 8 9 10 11."""

import numpy as np
import pytest
from tp2d_data.rows.collate import EMPTY, Picks, collate, document_ends
from tp2d_data.rows.packing import Packing
from tp2d_data.rows.rows import open_rows, statistics
from tp2d_data.tokens.cache import Tokens

PAD = 1


def tokens(*documents, trained=None, key="key"):
    return Tokens(
        ids=np.array([token for document in documents for token in document], np.uint16),
        offsets=np.concatenate([[0], np.cumsum([len(document) for document in documents])]).astype(np.int64),
        trained=None if trained is None else np.array([t for some in trained for t in some], np.uint8),
        read=len(documents),
        dropped={},
        following=None,
        key=key,
    )


DOCUMENTS = ([2, 3, 4], [5, 6], [7, 8, 9, 10, 11])


@pytest.fixture
def batch(tmp_path):
    def make(*numbers, source=None, **options):
        packing = Packing(**({"seq_length": 6} | options))
        rows = open_rows(source or tokens(*DOCUMENTS), packing, cache_dir=tmp_path)
        picks = Picks(parts=[rows], part=np.zeros(len(numbers), np.int64), number=np.array(numbers))
        found = collate(picks, packing=packing, pad_token_id=PAD)
        assert all(array.shape == (len(numbers), 6) and array.dtype == np.int64 for array in found.values())
        return {name: array.tolist() for name, array in found.items()}

    return make


def test_best_fit(batch):
    """The row of five has room for none; three and two share one. Each document's first label is no label."""
    found = batch(0, 1)
    assert found["input_ids"] == [[7, 8, 9, 10, 11, PAD], [2, 3, 4, 5, 6, PAD]]
    assert found["position_ids"] == [[0, 1, 2, 3, 4, 0], [0, 1, 2, 0, 1, 0]]
    assert found["labels"] == [[-100, 8, 9, 10, 11, -100], [-100, 3, 4, -100, 6, -100]]
    assert list(found) == ["input_ids", "labels", "position_ids"]


def test_concat(batch):
    """Ten tokens in rows of six; the second begins with the first's last token, which only the first predicts."""
    found = batch(0, 1, mode="concat")
    assert found["input_ids"] == [[2, 3, 4, 5, 6, 7], [7, 8, 9, 10, 11, PAD]]
    assert found["position_ids"] == [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 4, 0]]
    assert found["labels"] == [[-100, 3, 4, -100, 6, -100], [-100, 8, 9, 10, 11, -100]]


def test_boundaries_not_respected(batch):
    """No positions: the row is one text to the model, and what begins a document is predicted from the one before."""
    found = batch(1, mode="best_fit", respect_boundaries=False)
    assert found == {"input_ids": [[2, 3, 4, 5, 6, PAD]], "labels": [[2, 3, 4, 5, 6, -100]]}


def test_pad(batch):
    found = batch(1, 0, mode="pad")
    assert found["input_ids"] == [[5, 6, PAD, PAD, PAD, PAD], [2, 3, 4, PAD, PAD, PAD]]
    assert found["attention_mask"] == [[1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0]]
    assert found["labels"] == [[5, 6, -100, -100, -100, -100], [2, 3, 4, -100, -100, -100]]


@pytest.mark.parametrize("mode", ["pad", "concat", "best_fit"])
def test_an_empty_row_counts_nothing(batch, mode):
    found = batch(0, EMPTY, mode=mode)
    assert found["input_ids"][1] == [PAD] * 6 and found["labels"][1] == [-100] * 6
    assert found["labels"][0] == batch(0, mode=mode)["labels"][0]
    if mode != "pad":
        assert found["position_ids"][1] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("mode", ["pad", "concat", "best_fit"])
def test_only_trained_tokens_are_labels(batch, mode):
    source = tokens([2, 3, 4, 5], trained=[[0, 0, 1, 1]], key=mode)
    assert batch(0, source=source, mode=mode)["labels"] == [[-100, -100, 4, 5, -100, -100]]


def test_an_answer_that_is_cut_off_leaves_its_document_out(batch, tmp_path):
    source = tokens([2] * 6 + [3, 4], [5, 6], trained=[[0] * 6 + [1, 1], [0, 1]])
    assert batch(0, source=source)["labels"] == [[-100, 6, -100, -100, -100, -100]]
    rows = open_rows(source, Packing(seq_length=6), cache_dir=tmp_path)
    counts = statistics([rows], 6)
    assert (counts.rows, counts.tokens, counts.cut_tokens, counts.padded_tokens) == (1, 2, 8, 4)


def test_rows_of_several_sources_in_one_batch(tmp_path):
    packing = Packing(mode="pad", seq_length=3)
    parts = [open_rows(tokens(*some), packing, cache_dir=tmp_path) for some in (DOCUMENTS, ([20, 21], [22, 23]))]
    picks = Picks(parts=parts, part=np.array([1, 0, 1, 0]), number=np.array([0, 1, 1, EMPTY]))
    found = collate(picks, packing=packing, pad_token_id=PAD)
    assert found["input_ids"].tolist() == [[20, 21, PAD], [5, 6, PAD], [22, 23, PAD], [PAD] * 3]


def test_the_ends_of_documents_count_padding_and_rows():
    """Shows an end lost where a row ends full, a row's padding taken into the document before it, or a wrong dtype."""
    positions = np.array([[0, 1, 2, 3, 4, 5], [0, 1, 2, 0, 1, 0], [0, 0, 0, 0, 1, 2]])
    ends = document_ends({"position_ids": positions})
    assert ends.tolist() == [0, 6, 9, 11, 12, 13, 14, 15, 18] and ends.dtype == np.int32
    assert document_ends({"input_ids": positions}) is None
