"""A user's own records go the same way as a file of them, and are refused where a resumed run could not read them."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from tp2d_data import Corpus, DataSpec, Packing, Records, Sharding, Source, Stream, create_dataloader, load_tokenizer
from tp2d_data.sources.own import OwnSource

ROWS = [{"text": f"w{i} w{i + 1} <eos>", "id": i} for i in range(60)]


class Own:
    """The smallest source: no length, no index."""

    name = "own"

    def __init__(self, rows=ROWS, identity="1"):
        self.rows_read = 0
        self.identity = identity
        self._rows = rows

    def __iter__(self):
        for row in self._rows:
            self.rows_read += 1
            yield row


def generated():
    yield from ROWS


@pytest.fixture
def make(words, tmp_path):
    def make(dataset, **options):
        given = {"seq_length": 8, "batch_size_per_gpu": 2, "dp_rank": 0, "dp_size": 1, "cache_dir": tmp_path / "cache"}
        return create_dataloader(words, dataset, **(given | options))

    return make


def batches(loader):
    return [{name: value.tolist() for name, value in batch.items()} for batch in loader]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(path)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"packing": "pad", "dataset_percentage": 50},
        {"holdout_percentage": 20},
        {"holdout_percentage": 20, "part": "eval"},
        {"streaming": True, "block_tokens": 30, "holdout_percentage": 20},
    ],
)
def test_the_same_batches_as_a_file(make, file, options):
    expected = batches(make(file, **options))
    sources = Own(), Records(ROWS, name="list"), Records(generated, name="function", identity=1)
    assert all(batches(make(source, **options)) == expected for source in sources)


def test_a_mixture_of_kinds(make, file):
    mixed = make([file, Own()], dataset_weights=[1, 3], packing="pad")
    assert len(mixed) == 60 and mixed.statistics.documents == 120


def test_a_position_in_the_middle_goes_on(make):
    whole = batches(make(Own()))
    first = make(Own())
    rows = iter(first)
    next(rows), next(rows)
    second = make(Own())
    second.load_state_dict(first.state_dict())
    assert batches(second) == whole[2:]


def test_the_cache_is_taken_by_name_and_identity(make):
    """With the identity given, changed records alone are not noticed; that is what it is for."""
    first, again, changed = Own(), Own(), Own(rows=ROWS[:30], identity="2")
    make(first), make(again)
    assert first.rows_read > 60 and again.rows_read == 1, "check reads one record, and the cache has the others"
    assert make(changed).statistics.documents == 30


def test_a_list_is_known_by_its_content(make):
    rows = [dict(row) for row in ROWS]
    source = Records(rows, name="list")
    assert make(source).statistics.documents == 60
    key = source.identity
    rows[0]["text"] = "w7 w7 w7"
    assert source.identity != key == Records(ROWS, name="other").identity
    assert 9 in torch.stack([batch["input_ids"] for batch in make(source, packing="pad")]).flatten().tolist()


def test_a_dataset_of_the_library_is_one(make, file):
    from datasets import Dataset

    found = make(Records(Dataset.from_list(ROWS), name="hf", identity="v1"))
    assert batches(found) == batches(make(file))


def test_the_middle_is_reached_without_the_beginning():
    read = []

    class Indexed(Own):
        def __len__(self):
            return len(ROWS)

        def __getitem__(self, number):
            read.append(number)
            return ROWS[number]

    found = list(OwnSource(Indexed()).records("train", ("text",), 57))
    assert read == [57, 58, 59] and [record.where for record in found] == [f"own, record {n}" for n in (58, 59, 60)]
    assert list(OwnSource(Own()).records("train", ("text",), 57)) == found


def refusal(make, dataset, **options):
    with pytest.raises(ValueError) as raised:
        make(dataset, **options)
    return str(raised.value)


def test_refuses_what_cannot_be_read_again(make):
    with pytest.raises(ValueError, match=r"the records of 'x' are a generator, which can be read once; a resumed run"):
        Records(generated(), name="x", identity=1)
    once = generated()
    said = refusal(make, Records(lambda: once, name="x", identity=1))
    assert said.startswith("dataset x gives the same iterator twice, which can be read once; a resumed run")


def test_refuses_what_has_no_name_or_identity(make):
    with pytest.raises(ValueError, match="the records of 'x' need an identity: JSON that changes when they change"):
        Records(generated, name="x")
    with pytest.raises(ValueError, match="the records of 'x' are a int; give a list or a function"):
        Records(1, name="x")
    assert "not a dict; give Records(records, name=..., identity=...)" in refusal(make, ROWS)
    assert "not a Anonymous; give Records" in refusal(make, type("Anonymous", (), {"__iter__": None, "name": "x"})())
    assert "the name of your own records must be a text that is not empty, not ''" in refusal(
        make, Records(ROWS, name="")
    )
    assert "dataset own: its identity is None" in refusal(make, Own(identity=None))
    assert "dataset own: its identity is not JSON" in refusal(make, Own(identity=object()))
    said = refusal(make, Records([{"text": "w0 w1", "at": object()}], name="x"))
    assert "x, record 1: is not JSON" in said and "so identity must be given" in said


def test_refuses_settings_it_has_not(make):
    assert refusal(make, Own(), dataset_config="x") == "dataset own has no configurations; leave dataset_config out"
    assert refusal(make, Own(), split="test") == "dataset own has no split 'test'; it has train"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "dataset own: split 'train' is empty"),
        (["text"], "own, record 1 is a str, not a mapping of fields to values"),
        ([{"body": ""}], "own, record 1 has no field 'text'; it has body: choose one with text_field"),
        ([*ROWS, {"body": ""}], "own, record 61 has no field 'text'"),
        ([*ROWS, {"text": 3}], "own, record 61: field 'text' holds a int, not text"),
    ],
)
def test_errors_name_the_record(make, rows, message):
    assert message in refusal(make, Own(rows=rows))


def test_errors_of_own_code_name_the_record(make):
    def failing():
        yield from ROWS[:5]
        raise RuntimeError("the connection\nis gone")

    said = refusal(make, Records(failing, name="db", identity=1))
    assert said == "db, record 6: cannot be read (RuntimeError: the connection is gone)"

    def absent():
        raise OSError("no server")

    assert refusal(make, Records(absent, name="db", identity=1)) == "dataset db: cannot be read (OSError: no server)"


def test_large_sources_are_read_here_and_tokenised_elsewhere(make, monkeypatch):
    """Other processes tokenise; a source that cannot be sent to them, or read in two places, works all the same."""
    monkeypatch.setattr("tp2d_data.tokens.cache._BATCH_RECORDS", 2)
    source = Own()
    with Path(__file__).open() as source.connection:  # an object that cannot be pickled
        assert make(source).statistics.documents == 60


def test_a_driver_sends_it(words, tmp_path):
    spec = DataSpec(
        corpora=(Corpus(dataset_name=Records(ROWS, name="list")),),
        packing=Packing(seq_length=8),
        stream=Stream(block_tokens=64),
        cache_dir=tmp_path,
    )
    sharding = Sharding(batch_size_per_gpu=2, dp_rank=0, dp_size=1)
    sent = pickle.loads(pickle.dumps(spec))
    there, here = (one.open(load_tokenizer(words), sharding=sharding) for one in (sent, spec))
    assert batches(there) == batches(here)


def test_is_what_the_protocol_says():
    sources: list[Source] = [Own(), Records(ROWS, name="x")]
    assert [source.name for source in sources] == ["own", "x"]
