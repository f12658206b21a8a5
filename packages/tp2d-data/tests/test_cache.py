import json
import os
import subprocess
import sys

import numpy as np
import pytest
from tp2d_data import load_tokenizer
from tp2d_data.sources.corpus import Corpus, open_corpus
from tp2d_data.sources.records import Record
from tp2d_data.tokens.cache import Tokeniser, grouped
from tp2d_data.tokens.examples import Task

TEXT = Task()


def tokenise(corpus, tokenizer, cache_dir, *, task=TEXT, **options):
    documents = open_corpus(Corpus(dataset_name=str(corpus), dataset_percentage=100), fields=task.fields)
    given = {"append_eos": False, "cache_dir": cache_dir} | options
    return Tokeniser(documents=documents, task=task, tokenizer=tokenizer, **given)


@pytest.fixture
def tokens(tmp_path, words):
    """The tokens of a text file with the given lines."""

    def load(lines):
        path = tmp_path / "corpus.txt"
        if not path.exists() or path.read_text().splitlines() != lines:
            path.write_text("".join(f"{line}\n" for line in lines))
        return tokenise(path, load_tokenizer(words), tmp_path / "cache").all()

    return load


def cached(tmp_path):
    return sorted(path for path in (tmp_path / "cache" / "tokens").iterdir() if path.is_dir())


def test_documents_of_two_tokens_or_more(tokens):
    found = tokens(["w0 w1 w2", "", "w3", "w4 w5", " ", "w6 <eos> w7 nonsense"])
    assert len(found) == 3 and found.read == 6 and sum(found.dropped.values()) == 3
    assert [found.ids[a:b].tolist() for a, b in zip(found.offsets, found.offsets[1:], strict=False)] == [
        [2, 3, 4],
        [6, 7],
        [8, 1, 9, 0],
    ]


def test_tokens_are_mapped_and_not_read(tokens):
    found = tokens(["w0 w1 w2"])
    assert isinstance(found.ids, np.memmap) and isinstance(found.offsets, np.memmap)
    assert found.ids.dtype == np.uint16 and found.trained is None
    assert not found.ids.flags.writeable


def test_which_tokens_are_labels_is_kept(tmp_path, words):
    (tmp_path / "a.jsonl").write_text('{"prompt": "w0 w1", "completion": "w2"}\n')
    task = Task(loss_on="completion")
    found = tokenise(tmp_path / "a.jsonl", load_tokenizer(words), tmp_path / "cache", task=task).all()
    assert found.ids.tolist() == [2, 3, 4, 1] and found.trained.tolist() == [0, 0, 1, 1]


def test_blocks_are_the_whole_and_name_what_follows(tmp_path, words, monkeypatch):
    """In groups of 2 documents of 2 tokens, a block of 5 tokens ends after 8: blocks follow one another."""
    monkeypatch.setattr("tp2d_data.tokens.cache._BATCH_RECORDS", 2)
    (tmp_path / "a.txt").write_text("".join(f"w{i} w{i}\n" for i in range(10)))
    tokeniser = tokenise(tmp_path / "a.txt", load_tokenizer(words), tmp_path / "cache")
    blocks, start = [], 0
    while start is not None:
        blocks.append(tokeniser.block(start, 5))
        start = blocks[-1].following
    assert [block.following for block in blocks] == [4, 8, None]
    assert np.concatenate([block.ids for block in blocks]).tolist() == tokeniser.all().ids.tolist()


def test_progress_says_what_was_dropped(tmp_path, words):
    said = []
    (tmp_path / "a.txt").write_text("w0 w1\n\nw2\n")
    tokenise(tmp_path / "a.txt", load_tokenizer(words), tmp_path / "cache", progress=said.append).all()
    assert len(said) == 1 and "3 documents, 2 tokens" in said[0] and "dropped (" in said[0]


def test_second_start_reads_the_first_ones_files(tokens, tmp_path):
    """The files are not written again: their inodes stay."""
    tokens(["w0 w1"])
    (folder,) = cached(tmp_path)
    before = [path.stat().st_ino for path in sorted(folder.iterdir())]
    tokens(["w0 w1"])
    assert cached(tmp_path) == [folder]
    assert [path.stat().st_ino for path in sorted(folder.iterdir())] == before


def test_changed_content_is_tokenised_anew(tokens):
    assert tokens(["w0 w1"]).ids.tolist() == [2, 3]
    assert tokens(["w0 w1 w2"]).ids.tolist() == [2, 3, 4]


def test_changed_tokenizer_is_another_cache(tokens, tmp_path, make_word_tokenizer):
    tokens(["w0 w1"])
    other = load_tokenizer(make_word_tokenizer(tmp_path / "other", eos_token="w0"))
    tokenise(tmp_path / "corpus.txt", other, tmp_path / "cache").all()
    assert len(cached(tmp_path)) == 2


def test_every_choice_of_the_task_is_another_cache(tmp_path, words):
    (tmp_path / "a.jsonl").write_text(json.dumps({"q": "w1 w2", "a": "w3", "chat": "w4 w5"}) + "\n")
    tokenizer = load_tokenizer(words)
    answer = Task(loss_on="completion", prompt_field="q", completion_field="a")
    tasks = answer, Task(text_field="q"), Task(text_field="chat"), Task(loss_on="assistant", messages_field="chat")
    made = [tokenise(tmp_path / "a.jsonl", tokenizer, tmp_path / "cache", task=task) for task in tasks]
    assert len({tokeniser.folder_of_block(0, 10) for tokeniser in made}) == 4


def test_large_vocabulary_takes_four_bytes(tokens, tmp_path, words):
    tokenizer = load_tokenizer(words)
    tokenizer.add_tokens([f"x{i}" for i in range(70_000)])
    (tmp_path / "large.txt").write_text("w0 x69999\n")
    found = tokenise(tmp_path / "large.txt", tokenizer, tmp_path / "cache").all()
    assert found.ids.tolist() == [2, 1002 + 69_999] and found.ids.dtype == np.uint32


def test_no_row_at_all(tokens):
    """No error of its own: the loader says it with the counts."""
    found = tokens(["w0", "w1"])
    assert len(found) == 0 and found.read == 2


def test_damage_is_refused_by_name(tokens, tmp_path):
    tokens(["w0 w1 w2"])
    (folder,) = cached(tmp_path)
    os.truncate(folder / "tokens.bin", 4)
    with pytest.raises(ValueError, match=rf"{folder} are damaged \(tokens.bin has 4 bytes instead of 6\); delete"):
        tokens(["w0 w1 w2"])


def test_bad_document_leaves_no_cache(tmp_path, words):
    (tmp_path / "bad.jsonl").write_text('{"text": "w0 w1"}\n{"text": 5}\n')
    for _ in range(2):
        with pytest.raises(ValueError, match="line 2: field 'text' holds a int"):
            tokenise(tmp_path / "bad.jsonl", load_tokenizer(words), tmp_path / "cache").all()
    assert cached(tmp_path) == []


def test_groups_are_bounded_in_records_and_characters():
    texts = ["x"] * 2500 + ["y" * 150_000] * 3
    groups = list(grouped((i, Record("", (text,))) for i, text in enumerate(texts)))
    assert [len(group) for group in groups] == [1024, 1024, 454, 1]
    assert [pair for group in groups for pair in group] == [(i, Record("", (text,))) for i, text in enumerate(texts)]


START = """
import logging, sys
from tp2d_data.tokens.cache import Tokeniser
from tp2d_data.sources.corpus import Corpus, open_corpus
from tp2d_data.tokens.examples import Task
from tp2d_data.tokens.tokenizer import load_tokenizer

corpus, cache, tokenizers = sys.argv[1:]
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
documents = open_corpus(Corpus(dataset_name=corpus, dataset_percentage=100), fields=("text",))
tokenizer = load_tokenizer("builtin:tiny", cache_dir=tokenizers)
given = {"task": Task(), "append_eos": False, "cache_dir": cache, "progress": logging.info}
tokens = Tokeniser(documents=documents, tokenizer=tokenizer, **given).all()
print(len(tokens), len(tokens.ids), int(tokens.ids.sum()))
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


def test_the_builtin_chat_template_counts_for_chats_alone(builtin_cache, tmp_path):
    tokenizer = load_tokenizer("builtin:tiny", cache_dir=builtin_cache)
    (tmp_path / "a.jsonl").write_text('{"text": "a b", "messages": []}\n')
    tasks = Task(), Task(loss_on="assistant")

    def folders():
        made = [tokenise(tmp_path / "a.jsonl", tokenizer, tmp_path / "cache", task=task) for task in tasks]
        return [one._folder(0, None) for one in made]

    text, chat = folders()
    tokenizer.chat_template = None
    assert folders()[0] == text and folders()[1] != chat
