import os
import subprocess
import sys

import numpy as np
import pytest
from tp2d_data import load_tokenizer
from tp2d_data.cache import _batches, load_rows
from tp2d_data.sources import Corpus, open_corpus


@pytest.fixture
def rows(tmp_path, words):
    """`load_rows` of a text file with the given lines."""

    def load(lines, **options):
        path = tmp_path / "corpus.txt"
        if not path.exists() or path.read_text().splitlines() != lines:
            path.write_text("".join(f"{line}\n" for line in lines))
        corpus = Corpus(dataset_name=str(path), dataset_percentage=100, **options)
        return load_rows(open_corpus(corpus), tokenizer=load_tokenizer(words), cache_dir=tmp_path / "cache")

    return load


def cached(tmp_path):
    return sorted(path for path in (tmp_path / "cache" / "tokens").iterdir() if path.is_dir())


def test_rows_are_the_documents_of_two_tokens_or_more(rows):
    found = rows(["w0 w1 w2", "", "w3", "w4 w5", " ", "w6 <eos> w7 nonsense"])
    assert len(found) == 3 and found.documents == 6
    assert [found.tokens[a:b].tolist() for a, b in zip(found.offsets, found.offsets[1:], strict=False)] == [
        [2, 3, 4],
        [6, 7],
        [8, 1, 9, 0],
    ]


def test_rows_are_mapped_and_not_read(rows):
    found = rows(["w0 w1 w2"])
    assert isinstance(found.tokens, np.memmap) and isinstance(found.offsets, np.memmap)
    assert found.tokens.dtype == np.uint16
    assert not found.tokens.flags.writeable


def test_kept_tokens(rows):
    found = rows(["w0 w1 w2", "w4 w5", "w1 " * 10])
    assert [found.kept_tokens(length) for length in (2, 4, 100)] == [6, 9, 15]


def test_second_start_reads_the_first_ones_files(rows, tmp_path):
    """The files are not written again: their inodes stay."""
    rows(["w0 w1"])
    (folder,) = cached(tmp_path)
    before = [path.stat().st_ino for path in sorted(folder.iterdir())]
    rows(["w0 w1"])
    assert cached(tmp_path) == [folder]
    assert [path.stat().st_ino for path in sorted(folder.iterdir())] == before


def test_changed_content_is_tokenised_anew(rows):
    assert rows(["w0 w1"]).tokens.tolist() == [2, 3]
    assert rows(["w0 w1 w2"]).tokens.tolist() == [2, 3, 4]


def test_changed_tokenizer_is_another_cache(rows, tmp_path, make_word_tokenizer):
    rows(["w0 w1"])
    other = load_tokenizer(make_word_tokenizer(tmp_path / "other", eos_token="w0"))
    corpus = Corpus(dataset_name=str(tmp_path / "corpus.txt"), dataset_percentage=100)
    load_rows(open_corpus(corpus), tokenizer=other, cache_dir=tmp_path / "cache")
    assert len(cached(tmp_path)) == 2


def test_large_vocabulary_takes_four_bytes(rows, tmp_path, words):
    tokenizer = load_tokenizer(words)
    tokenizer.add_tokens([f"x{i}" for i in range(70_000)])
    (tmp_path / "large.txt").write_text("w0 x69999\n")
    corpus = Corpus(dataset_name=str(tmp_path / "large.txt"), dataset_percentage=100)
    found = load_rows(open_corpus(corpus), tokenizer=tokenizer, cache_dir=tmp_path / "cache")
    assert found.tokens.tolist() == [2, 1002 + 69_999] and found.tokens.dtype == np.uint32


def test_no_row_at_all(rows):
    """No error of its own: the loader says it with the counts."""
    found = rows(["w0", "w1"])
    assert len(found) == 0 and found.documents == 2 and found.kept_tokens(8) == 0


def test_damage_is_refused_by_name(rows, tmp_path):
    rows(["w0 w1 w2"])
    (folder,) = cached(tmp_path)
    os.truncate(folder / "tokens.bin", 4)
    with pytest.raises(ValueError, match=rf"{folder} are damaged \(tokens.bin has 4 bytes instead of 6\); delete"):
        rows(["w0 w1 w2"])


def test_bad_document_leaves_no_cache(tmp_path, words):
    (tmp_path / "bad.jsonl").write_text('{"text": "w0 w1"}\n{"text": 5}\n')
    corpus = Corpus(dataset_name=str(tmp_path / "bad.jsonl"), dataset_percentage=100)
    for _ in range(2):
        with pytest.raises(ValueError, match="line 2: field 'text' holds a int"):
            load_rows(open_corpus(corpus), tokenizer=load_tokenizer(words), cache_dir=tmp_path / "cache")
    assert cached(tmp_path) == []


def test_batches_are_bounded_in_documents_and_characters():
    batches = list(_batches(["x"] * 2500 + ["y" * 3_000_000] * 3))
    assert [len(batch) for batch in batches] == [1024, 1024, 454, 1]
    assert [text for batch in batches for text in batch] == ["x"] * 2500 + ["y" * 3_000_000] * 3


START = """
import logging, sys
from tp2d_data.cache import load_rows
from tp2d_data.sources import Corpus, open_corpus
from tp2d_data.tokenizer import load_tokenizer

corpus, cache, tokenizers = sys.argv[1:]
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
documents = open_corpus(Corpus(dataset_name=corpus, dataset_percentage=100))
rows = load_rows(documents, tokenizer=load_tokenizer("builtin:tiny", cache_dir=tokenizers), cache_dir=cache)
print(len(rows), len(rows.tokens), int(rows.tokens.sum()))
"""


def test_concurrent_starts_tokenise_once(tmp_path, builtin_cache):
    """Three ranks of one machine start together: one of them tokenises, and all read the same rows."""
    load_tokenizer("builtin:tiny", cache_dir=builtin_cache)
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("".join(f"line {i} of a corpus\n" for i in range(20_000)))
    command = [sys.executable, "-c", START, str(corpus), str(tmp_path / "cache"), str(builtin_cache)]
    ranks = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = [rank.communicate(timeout=100)[0].splitlines() for rank in ranks]
    assert sum(line.startswith("tokenised ") for output in outputs for line in output) == 1
    assert len(cached(tmp_path)) == 1
    assert len({output[-1] for output in outputs}) == 1 and outputs[0][-1].startswith("20000 ")
