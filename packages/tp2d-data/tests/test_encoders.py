"""Processes that tokenise: the same tokens, and what is said when one of them ends."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from tp2d_data import load_tokenizer
from tp2d_data.sources.corpus import Corpus, open_corpus
from tp2d_data.tokens.cache import Tokeniser
from tp2d_data.tokens.encoders import Encoders
from tp2d_data.tokens.examples import Task
from tp2d_data.tokens.tokenizer import encode

TEXTS = ["w0 w1", "", "unknown  words", "w3 <eos>", "w5 " * 300, "naïve \u4f60\u597d \U0001f600"]


@pytest.fixture(scope="module")
def tokenizer(words):
    return load_tokenizer(words)


@pytest.mark.parametrize("options", [{}, {"add_special_tokens": False}, {"eos": 1}])
def test_the_same_tokens_as_here(tokenizer, options):
    with Encoders(tokenizer, processes=2) as encoders, ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: encoders.encode(TEXTS, **options), range(8)))
    expected = encode(tokenizer, TEXTS, **options)
    assert [[row.tolist() for row in rows] for rows in found] == [expected] * 8
    assert all(row.dtype == np.uint32 for row in found[0])


def test_special_tokens_and_the_built_in_tokenizer(builtin_cache):
    tokenizer = load_tokenizer("builtin:tiny", cache_dir=builtin_cache)
    texts = ["Return the number.<|endoftext|>", "x" * 1000]
    with Encoders(tokenizer, processes=1) as encoders:
        assert [row.tolist() for row in encoders.encode(texts)] == encode(tokenizer, texts)


def test_a_process_that_ends_is_told(tokenizer):
    with Encoders(tokenizer, processes=1) as encoders:
        encoders.encode(["w0"])
        os.kill(encoders._all[0]._process.pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match=r"a process that tokenises ended with exit code -9 \(-9: killed"):
            encoders.encode(["w0"])


def test_none_is_left_behind(tokenizer):
    encoders = Encoders(tokenizer, processes=2)
    encoders.encode(["w0"])
    processes = [one._process for one in encoders._all]
    encoders.close()
    assert [process.poll() for process in processes] == [0, 0]


@pytest.mark.parametrize("append_eos", [False, True])
def test_a_corpus_that_takes_a_while(tokenizer, tmp_path, monkeypatch, append_eos):
    """Of 30 groups the first 16 are tokenised here, the others in processes: the files are those of one pass."""
    monkeypatch.setattr("tp2d_data.tokens.cache._BATCH_RECORDS", 4)
    lines = [" ".join(f"w{(i * j) % 900}" for j in range(1 + i % 9)) for i in range(120)]
    (tmp_path / "corpus.txt").write_text("\n".join(lines) + "\n")
    documents = open_corpus(Corpus(dataset_name=str(tmp_path / "corpus.txt"), dataset_percentage=100), fields=("text",))
    given = {"task": Task(), "append_eos": append_eos, "cache_dir": tmp_path / "cache"}
    tokens = Tokeniser(documents=documents, tokenizer=tokenizer, **given).all()
    expected = [row for row in encode(tokenizer, lines, eos=1 if append_eos else None) if len(row) > 1]
    assert [tokens.ids[a:b].tolist() for a, b in zip(tokens.offsets, tokens.offsets[1:], strict=False)] == expected
    assert tokens.read == 120
