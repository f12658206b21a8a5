"""`DataSpec` refuses wrong data before anything is tokenised."""

import dataclasses

import pytest
from tp2d_data import Corpus, DataSpec, Packing, Sharding, Stream, Task, TooFewRows, load_tokenizer


@pytest.fixture
def spec(tmp_path):
    (tmp_path / "a.txt").write_text("w0 w1\n" * 20)

    def make(*names, **options):
        corpora = tuple(Corpus(dataset_name=str(tmp_path / name), dataset_percentage=100) for name in names)
        return DataSpec(
            **({"corpora": corpora, "packing": Packing(seq_length=8), "cache_dir": tmp_path / "c"} | options)
        )

    return make


@pytest.mark.parametrize(
    ("corpora", "options", "message"),
    [
        (0, {}, "dataset_name is empty; give a hub name, a local file or folder, or builtin:stdlib"),
        (2, {"weights": (1.0,)}, "dataset_weights has 1 numbers for 2 datasets; give one for each"),
        (2, {"weights": (1.0, 0)}, "dataset_weights must be above 0, not 1, 0"),
        (2, {"weights": (1.0, float("nan"))}, "dataset_weights must be above 0, not 1, nan"),
        (2, {"stream": Stream()}, "streaming 2 datasets needs dataset_weights, 2 numbers: nobody knows their sizes"),
    ],
)
def test_checks_itself(spec, corpora, options, message):
    with pytest.raises(ValueError) as raised:
        spec(*["a.txt"] * corpora, **options)
    assert str(raised.value) == message


@pytest.mark.parametrize("tokens", [0, -1])
def test_a_block_has_tokens(tokens):
    with pytest.raises(ValueError, match=f"block_tokens must be at least 1, not {tokens}"):
        Stream(block_tokens=tokens)


def test_check_looks_at_datasets_and_tokenizer_and_tokenises_nothing(spec, words, make_word_tokenizer, tmp_path):
    tokenizer = load_tokenizer(words)
    spec("a.txt").check(tokenizer)
    spec("a.txt", stream=Stream()).check(tokenizer)
    with pytest.raises(ValueError, match="none does not exist"):
        spec("a.txt", "none").check(tokenizer)
    with pytest.raises(ValueError, match="has no field 'body'; it has text"):
        spec("a.txt", task=Task(text_field="body")).check(tokenizer)
    without_eos = load_tokenizer(make_word_tokenizer(tmp_path / "without", pad_token="w0"))
    spec("a.txt").check(without_eos)
    open_rows = Packing(seq_length=8, respect_boundaries=False)
    with pytest.raises(ValueError, match="has no end-of-text token, which append_eos needs"):
        spec("a.txt", packing=open_rows).check(without_eos)
    spec("a.txt", packing=dataclasses.replace(open_rows, append_eos=False)).check(without_eos)
    with pytest.raises(ValueError, match="has no chat template"):
        spec("a.txt", task=Task(loss_on="assistant", messages_field="text")).check(tokenizer)
    assert not (tmp_path / "c" / "tokens").exists()


def test_a_dataset_without_rows_can_have_no_weight(spec, words, tmp_path):
    (tmp_path / "one.txt").write_text("w0\n")
    sharding = Sharding(batch_size_per_gpu=1, dp_rank=0, dp_size=1)
    with pytest.raises(TooFewRows, match=r"one\.txt gives no row, so it cannot have a share of dataset_weights"):
        spec("a.txt", "one.txt", weights=(1.0, 1.0)).open(load_tokenizer(words), sharding=sharding)


def test_is_a_value(spec):
    """Equal and hashable, so that a driver can send it to its ranks and compare."""
    assert spec("a.txt") == spec("a.txt") != spec("a.txt", stream=Stream())
    assert len({spec("a.txt"), spec("a.txt")}) == 1
