"""`DataSpec` refuses wrong data before anything is tokenised."""

import dataclasses

import pytest
from tp2d_data import Corpus, DataSpec, Packing, Records, Sharding, Stream, Task, TooFewRows, load_tokenizer


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


@pytest.fixture
def evaluated(tmp_path, spec):
    """A spec over 20 documents to train on and 5 to evaluate on."""
    (tmp_path / "e.txt").write_text("w5 w6\n" * 5)

    def make(*names, **options):
        corpora = tuple(Corpus(dataset_name=str(tmp_path / name)) for name in names or ["e.txt"])
        training = Corpus(dataset_name=str(tmp_path / "a.txt"), dataset_percentage=50, holdout_percentage=50)
        return spec("a.txt", **({"corpora": (training,), "eval_corpora": corpora} | options))

    return make


ONE = Sharding(batch_size_per_gpu=1, dp_rank=0, dp_size=1)


def test_an_evaluation_of_its_own_data_reads_them_whole_and_holds_nothing_out(evaluated, words):
    tokenizer = load_tokenizer(words)
    for options in ({}, {"stream": Stream(block_tokens=8)}, {"weights": (1.0,)}):
        found = evaluated(**options)
        found.check(tokenizer)
        held_out = found.open(tokenizer, part="eval", sharding=ONE)
        assert held_out.statistics.documents == 5
        assert {token for batch in held_out for token in batch["input_ids"].flatten().tolist()} == {7, 8, 1}
        trained = found.open(tokenizer, sharding=ONE)
        labels = [int((batch["labels"] != -100).sum()) for batch in trained]
        assert sum(labels) == 10, "all of the 10 documents that dataset_percentage leaves, with a label each"


def test_which_split_is_evaluated_on(evaluated, words, tmp_path):
    tokenizer = load_tokenizer(words)
    splits = {"both": ["train", "validation"], "one": ["test"], "two": ["test", "train"]}
    for name, files in splits.items():
        (tmp_path / name).mkdir()
        for number, split in enumerate(files, 1):
            (tmp_path / name / f"{split}.txt").write_text("w0 w1\n" * number)
    for name, documents in {"both": 2, "one": 1, "two": 2}.items():
        found = evaluated(name).open(tokenizer, part="eval", sharding=ONE)
        assert found.statistics.documents == documents, name
    several = evaluated(eval_corpora=(Corpus(dataset_name=str(tmp_path / "two"), split="dev"),))
    with pytest.raises(ValueError, match="has neither the split 'validation' nor 'dev'; it has train, test; set split"):
        several.check(tokenizer)


def test_check_looks_at_what_is_evaluated_on(evaluated, words, tmp_path):
    with pytest.raises(ValueError, match=r"none\.txt does not exist"):
        evaluated("none.txt").check()
    (tmp_path / "other.jsonl").write_text('{"body": "x"}\n')
    with pytest.raises(ValueError, match="has no field 'text'; it has body"):
        evaluated("other.jsonl").check()


def test_counts_rows_where_that_is_quick(spec, words, tmp_path, monkeypatch):
    tokenizer = load_tokenizer(words)
    four = dataclasses.replace(ONE, batch_size_per_gpu=4)
    packing = Packing(seq_length=8, mode="pad")
    assert spec("a.txt", packing=packing).count_rows(tokenizer, sharding=four) == 20
    assert spec("a.txt", "a.txt", packing=packing).count_rows(tokenizer, sharding=ONE) == 40
    with pytest.raises(TooFewRows, match="5 rows to train on, of 20 documents, are fewer than one global batch of 40"):
        spec("a.txt").count_rows(tokenizer, sharding=dataclasses.replace(ONE, batch_size_per_gpu=40))
    assert spec("a.txt", stream=Stream()).count_rows(tokenizer, sharding=ONE) is None
    monkeypatch.setattr("tp2d_data.spec.QUICK_BYTES", 100)
    assert spec("a.txt", cache_dir=tmp_path / "other").count_rows(tokenizer, sharding=ONE) is None
    assert not (tmp_path / "other" / "tokens").exists()


def test_counts_rows_of_what_is_tokenised_already(spec, words):
    """A dataset whose size is not known, such as one of the hub."""
    tokenizer = load_tokenizer(words)
    rows = Records([{"text": "w0 w1"}] * 20, name="own")
    found = spec(corpora=(Corpus(dataset_name=rows),), packing=Packing(seq_length=8, mode="pad"))
    assert found.count_rows(tokenizer, sharding=ONE) is None
    found.open(tokenizer, sharding=ONE)
    assert found.count_rows(tokenizer, sharding=ONE) == 20
