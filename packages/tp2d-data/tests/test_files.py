import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tp2d_data.files import FilesSource

TEXTS = ["one", "", "two words", "drei Wörter hier"]


def write(path, texts=TEXTS, field="text"):
    """`texts` in the format of the path's suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"id": number, field: text} for number, text in enumerate(texts)]
    table = pa.Table.from_pylist(rows, schema=pa.schema({"id": pa.int64(), field: pa.string()}))
    match path.suffix:
        case ".txt":
            path.write_text("".join(text + "\n" for text in texts), encoding="utf-8")
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case ".json":
            path.write_text(json.dumps(rows, indent=1))
        case ".parquet":
            pq.write_table(table, path, row_group_size=2)
        case ".arrow":
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
                writer.write_table(table, max_chunksize=3)
    return path


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".json", ".parquet", ".arrow"])
def test_reads_every_format(tmp_path, suffix):
    source = FilesSource(write(tmp_path / f"data{suffix}"))
    source.check("train", "text")
    assert list(source.texts("train", "text")) == TEXTS
    assert source.count("train") == len(TEXTS)
    assert source.splits() == ("train",)


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".json", ".parquet", ".arrow"])
def test_refuses_a_field_that_is_not_there(tmp_path, suffix):
    source = FilesSource(write(tmp_path / f"data{suffix}"))
    fields = "text" if suffix == ".txt" else "id, text"
    with pytest.raises(ValueError, match=rf"has no field 'body'; it has {fields}: choose one with text_field"):
        source.check("train", "body")


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".json", ".parquet", ".arrow"])
def test_refuses_an_empty_split(tmp_path, suffix):
    source = FilesSource(write(tmp_path / f"data{suffix}", texts=[]))
    with pytest.raises(ValueError, match="split 'train' is empty"):
        source.check("train", "text")


def test_reads_an_arrow_file_of_the_file_format(tmp_path):
    table = pa.table({"text": TEXTS})
    with pa.OSFile(str(tmp_path / "data.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    assert list(FilesSource(tmp_path / "data.arrow").texts("train", "text")) == TEXTS


def test_reads_what_datasets_saved(tmp_path):
    """`save_to_disk` writes arrow streams with json notes beside them, a folder per split."""
    datasets = pytest.importorskip("datasets")
    data = datasets.DatasetDict(
        {split: datasets.Dataset.from_dict({"text": [split, "x"]}) for split in ("train", "test")}
    )
    data.save_to_disk(tmp_path / "saved")
    source = FilesSource(tmp_path / "saved")
    assert source.splits() == ("train", "test")
    assert list(source.texts("test", "text")) == ["test", "x"]


def test_txt_keeps_lines_as_they_are(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeff = Title = \r\n\n indented\u2028still the same line".encode())
    source = FilesSource(tmp_path / "a.txt")
    assert list(source.texts("train", "text")) == [" = Title = ", "", " indented\u2028still the same line"]
    assert source.count("train") == 3


def test_null_is_an_empty_document(tmp_path):
    source = FilesSource(write(tmp_path / "a.parquet", texts=["one", None]))
    assert list(source.texts("train", "text")) == ["one", ""]


def test_splits_by_name(tmp_path):
    for name in ("wiki.train-00001.txt", "wiki.train-00000.txt", "valid/a.txt", "test/latest.txt"):
        write(tmp_path / name, texts=[name])
    source = FilesSource(tmp_path)
    assert source.splits() == ("train", "validation", "test")
    assert list(source.texts("train", "text")) == ["wiki.train-00000.txt", "wiki.train-00001.txt"]
    assert list(source.texts("validation", "text")) == ["valid/a.txt"]


def test_without_split_names_everything_is_train(tmp_path):
    for name in ("latest.txt", "b/c.txt", ".hidden.txt", "_notes/d.txt"):
        write(tmp_path / name, texts=[name])
    assert list(FilesSource(tmp_path).texts("train", "text")) == ["b/c.txt", "latest.txt"]


def test_identity_follows_the_content(tmp_path):
    path = write(tmp_path / "a.txt")
    before = FilesSource(path).identity("train")
    assert FilesSource(path).identity("train") == before
    write(path, texts=["other"])
    assert FilesSource(path).identity("train") != before


def refusal(path, field="text"):
    source = FilesSource(path)
    with pytest.raises(ValueError) as raised:
        list(source.texts("train", field))
    return str(raised.value).replace(str(path), path.name)


def test_names_file_and_line_of_what_cannot_be_read(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"fine\nnot \xff utf-8\n")
    assert refusal(tmp_path / "a.txt").startswith("a.txt, line 2: not UTF-8 (invalid start byte at byte 4)")
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n\n{"text": \n')
    assert refusal(tmp_path / "a.jsonl").startswith("a.jsonl, line 3: not JSON (")
    (tmp_path / "b.jsonl").write_text('{"text": "fine"}\n{"body": 1, "id": 2}\n')
    assert refusal(tmp_path / "b.jsonl") == "b.jsonl, line 2: no field 'text'; it has body, id"
    (tmp_path / "c.jsonl").write_text("7\n")
    assert refusal(tmp_path / "c.jsonl") == "c.jsonl, line 1: expected an object, found a int"
    (tmp_path / "d.json").write_text('[{"text": "fine"}, {"text": 7}]')
    expected = "d.json, row 2: field 'text' holds a int, not text; choose another with text_field"
    assert refusal(tmp_path / "d.json") == expected
    (tmp_path / "e.jsonl").write_text('{"text": "\\ud800"}\n')
    assert refusal(tmp_path / "e.jsonl").startswith("e.jsonl, line 1: field 'text' is not valid Unicode")
    (tmp_path / "f.parquet").write_text("no parquet")
    assert refusal(tmp_path / "f.parquet").startswith("f.parquet: not a parquet file (")
    (tmp_path / "g.arrow").write_text("no arrow at all")
    assert refusal(tmp_path / "g.arrow").startswith("g.arrow: not an arrow file (")
    write(tmp_path / "h.parquet")
    expected = "h.parquet, row 1: field 'id' holds a int, not text; choose another with text_field"
    assert refusal(tmp_path / "h.parquet", "id") == expected


def test_refuses_folders_it_cannot_understand(tmp_path):
    with pytest.raises(ValueError, match=r"no \.txt, \.jsonl, \.json, \.parquet, \.arrow file in it"):
        FilesSource(tmp_path)
    write(tmp_path / "train.txt")
    write(tmp_path / "extra.txt")
    with pytest.raises(ValueError, match=r"extra\.txt names no split .* while other files do"):
        FilesSource(tmp_path)
    write(tmp_path / "extra.jsonl")
    with pytest.raises(ValueError, match=r"mixes formats \(extra\.jsonl, extra\.txt\)"):
        FilesSource(tmp_path)
    with pytest.raises(ValueError, match=r"a file must be one of .*, not '\.csv'"):
        (tmp_path / "a.csv").write_text("a,b")
        FilesSource(tmp_path / "a.csv")
