import json
import time
from itertools import product

import pytest
from tp2d_data import Corpus
from tp2d_data.sources.corpus import open_corpus


def opened(name, *, fields=("text",), part="train", streaming=False, cache_dir=None, **options):
    corpus = Corpus(dataset_name=str(name), **({"dataset_percentage": 100} | options))
    return open_corpus(corpus, fields=fields, part=part, streaming=streaming, cache_dir=cache_dir)


def documents(name, **options):
    return [record.values[0] for record in opened(name, **options)]


@pytest.fixture
def lines(tmp_path):
    """A text file of 200 documents, `document 0` to `document 199`."""
    path = tmp_path / "lines.txt"
    path.write_text("".join(f"document {i}\n" for i in range(200)))
    return path


@pytest.fixture
def folder(tmp_path):
    """A folder with a training and a validation split."""
    (tmp_path / "folder").mkdir()
    for split in ("train", "validation"):
        (tmp_path / "folder" / f"{split}.jsonl").write_text(json.dumps({"body": split}) + "\n")
    return tmp_path / "folder"


@pytest.mark.parametrize(("percentage", "count"), [(100, 200), (10, 20), (0.5, 1), (33.4, 67), (99.9, 200)])
def test_percentage_takes_the_first_documents(lines, percentage, count):
    """Rounded to the nearest, as `train[:p%]` of datasets does."""
    assert documents(lines, dataset_percentage=percentage) == [f"document {i}" for i in range(count)]


@pytest.mark.parametrize("percentage", [0, -1, 100.1, 101, float("nan"), float("inf")])
def test_refuses_percentages(lines, percentage):
    with pytest.raises(ValueError, match=f"dataset_percentage must be above 0 and at most 100, not {percentage}"):
        Corpus(dataset_name=str(lines), dataset_percentage=percentage)


def test_holdout_parts_are_disjoint_and_whole(lines):
    parts = {part: documents(lines, part=part, holdout_percentage=20) for part in ("train", "eval")}
    assert 20 < len(parts["eval"]) < 60
    assert sorted(parts["train"] + parts["eval"]) == sorted(documents(lines))


def test_holdout_is_a_share_of_what_the_percentage_leaves(lines):
    train, held_out = (
        documents(lines, part=part, holdout_percentage=20, dataset_percentage=50) for part in ("train", "eval")
    )
    assert sorted(train + held_out) == sorted(documents(lines, dataset_percentage=50))


def test_own_validation_split_is_what_is_evaluated_on(folder):
    """A holdout then takes nothing from the training split."""
    options = {"fields": ("body",), "holdout_percentage": 90}
    assert documents(folder, part="train", **options) == ["train"]
    assert documents(folder, part="eval", **options) == ["validation"]
    assert documents(folder, split="validation", fields=("body",)) == ["validation"]


def test_builtin_corpus(builtin_cache):
    train, held_out = (documents("builtin:stdlib", cache_dir=builtin_cache, part=part) for part in ("train", "eval"))
    assert not set(train) & set(held_out)
    some = documents("builtin:stdlib", cache_dir=builtin_cache, dataset_percentage=10)
    assert some == train[: round(len(train) / 10)]


def test_configuration_of_a_folder_is_a_folder_in_it(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(name)
    assert documents(tmp_path, dataset_config="two") == ["two"]
    with pytest.raises(ValueError, match="has no folder for dataset_config 'three'; it has one, two"):
        opened(tmp_path, dataset_config="three")


def test_identity_tells_every_choice_apart(lines):
    choices = product((10, 20), ("train", "eval"), (10, 20))
    given = [
        {"dataset_percentage": percentage, "part": part, "holdout_percentage": share}
        for percentage, part, share in choices
    ]
    identities = {json.dumps(opened(lines, **options).identity()) for options in given}
    assert len(identities) == 8
    again = {json.dumps(opened(lines, **options).identity()) for options in given}
    assert again == identities


def test_refusals(lines, folder, tmp_path):
    def refusal(name, **options):
        with pytest.raises(ValueError) as raised:
            opened(name, **options)
        return str(raised.value)

    assert refusal("") == "dataset_name is empty; give a hub name, a local file or folder, or builtin:stdlib"
    assert refusal("builtin:stlib") == "dataset 'builtin:stlib' is unknown; the only built-in one is builtin:stdlib"
    assert "has no configurations" in refusal("builtin:stdlib", dataset_config="x")
    assert "builtin:stdlib has no split 'test'; it has train, validation" in refusal("builtin:stdlib", split="test")
    assert "has no field 'body'; it has text" in refusal("builtin:stdlib", fields=("body",))
    assert f"dataset {tmp_path}/none does not exist; give a hub name" in refusal(tmp_path / "none")
    assert "dataset ./none.txt does not exist" in refusal("./none.txt")
    assert "dataset none.txt does not exist" in refusal("none.txt")
    assert "has no split 'test'; it has train, validation" in refusal(folder, split="test", fields=("body",))
    assert "has no field 'text'; it has body: choose one with text_field" in refusal(folder / "train.jsonl")
    assert "has no validation split and holdout_percentage is 0" in refusal(lines, part="eval")
    assert refusal(lines, part="test") == "part must be train or eval, not 'test'"
    assert refusal(lines, holdout_percentage=100.0) == "holdout_percentage must be at least 0 and below 100, not 100.0"
    assert "holdout_percentage must be" in refusal(lines, holdout_percentage=float("nan"))
    (tmp_path / "empty.txt").write_text("\n \n")
    assert f"dataset {tmp_path}/empty.txt: split 'train' is empty" in refusal(tmp_path / "empty.txt")


def test_check_is_quick(tmp_path):
    """It reads the beginning and never the whole: 50 MB would take far more processor time to tokenise than this."""
    (tmp_path / "large.txt").write_text("a line of a large corpus\n" * 2_000_000)
    begin = time.process_time()
    opened(tmp_path / "large.txt", dataset_percentage=50)
    opened("builtin:stdlib", part="eval")
    assert time.process_time() - begin < 2


def test_begins_at_any_record(lines):
    """`numbered(n + 1)` goes on after record n, with a percentage and a holdout as without."""
    for options in ({}, {"holdout_percentage": 20}, {"part": "eval", "holdout_percentage": 20}):
        for percentage in (100, 33):
            found = opened(lines, dataset_percentage=percentage, **options)
            whole = list(found.numbered())
            assert [record for _, record in whole] == list(found)
            assert all(record.where == f"{lines}, line {number + 1}" for number, record in whole)
            for start in (0, 1, 50, 66, 199, 200, 500):
                rest = [pair for pair in whole if pair[0] >= start]
                assert list(found.numbered(start)) == rest
                assert list(found.records(start)) == [record for _, record in rest]


def test_any_fields_in_the_order_asked_for(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"q": "why", "a": "so", "chat": []}) + "\n")
    assert [record.values for record in opened(path, fields=("q", "a"))] == [("why", "so")]
    assert [record.values for record in opened(path, fields=("chat",))] == [([],)]
    with pytest.raises(ValueError, match="has no field 'messages'; it has q, a, chat: choose one with text_field, "):
        opened(path, fields=("messages",))


def test_holdout_of_chats_is_by_their_content(tmp_path):
    path = tmp_path / "chats.jsonl"
    chats = [[{"role": "user", "content": f"question {i}"}] for i in range(200)]
    path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    options = {"holdout_percentage": 20, "fields": ("messages",)}
    train, held_out = (documents(path, part=part, **options) for part in ("train", "eval"))
    assert 20 < len(held_out) < 60 and sorted(train + held_out, key=str) == sorted(chats, key=str)


def test_local_files_stream_as_they_are(lines):
    assert documents(lines, streaming=True, dataset_percentage=10) == documents(lines, dataset_percentage=10)
