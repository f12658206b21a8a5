"""Small tokenizers and corpora, and one cache of the built-in data for the whole session."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def builtin_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of the whole test session where it has one, so that all packages make the built-in data once."""
    return Path(os.environ.get("TP2D_CACHE") or tmp_path_factory.mktemp("builtin-cache"))


def save_word_tokenizer(folder: Path, **special: str) -> str:
    """A tokenizer of the words <unk>, <eos>, w0 .. w999 (ids 0, 1, 2 ..) in `folder`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: number for number, word in enumerate(["<unk>", "<eos>", *(f"w{i}" for i in range(1000))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", **special).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a word tokenizer that has <eos> and no padding token."""
    return save_word_tokenizer(tmp_path_factory.mktemp("words"), eos_token="<eos>")


@pytest.fixture(scope="session")
def make_word_tokenizer() -> Callable[..., str]:
    return save_word_tokenizer


@pytest.fixture
def make_loader(tmp_path: Path, words: str) -> Callable[..., Any]:
    """`create_dataloader` over a text file of `rows` lines, where row i is `w<i> <eos> w<i>`, a row a document."""
    from tp2d_data import create_dataloader

    def make(rows: int, **options: Any) -> Any:
        path = tmp_path / f"corpus-{rows}.txt"
        if not path.exists():
            path.write_text("".join(f"w{i} <eos> w{i}\n" for i in range(rows)))
        sharding = {"batch_size_per_gpu": 2, "dp_rank": 0, "dp_size": 1}
        given = {"seq_length": 4, "dataset_percentage": 100, "packing": "pad", **sharding}
        return create_dataloader(words, str(path), cache_dir=tmp_path / "cache", **(given | options))

    return make
