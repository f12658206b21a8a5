import gzip
import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tp2d_data.sources.files import FilesSource, is_data_name

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


def texts(source, split="train", field="text", start=0):
    return [record.values[0] for record in source.records(split, (field,), start)]


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".json", ".parquet", ".arrow"])
def test_reads_every_format(tmp_path, suffix):
    source = FilesSource(write(tmp_path / f"data{suffix}"))
    source.check("train", ("text",))
    assert texts(source, "train") == TEXTS
    assert source.count("train") == len(TEXTS)
    assert source.splits() == ("train",)


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".json", ".parquet", ".arrow"])
def test_refuses_a_field_that_is_not_there(tmp_path, suffix):
    source = FilesSource(write(tmp_path / f"data{suffix}"))
    fields = "text" if suffix == ".txt" else "id, text"
    with pytest.raises(ValueError, match=rf"has no field 'body'; it has {fields}: choose one with text_field"):
        source.check("train", ("body",))


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".json", ".parquet", ".arrow"])
def test_refuses_an_empty_split(tmp_path, suffix):
    source = FilesSource(write(tmp_path / f"data{suffix}", texts=[]))
    with pytest.raises(ValueError, match="split 'train' is empty"):
        source.check("train", ("text",))


def test_reads_an_arrow_file_of_the_file_format(tmp_path):
    table = pa.table({"text": TEXTS})
    with pa.OSFile(str(tmp_path / "data.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    assert texts(FilesSource(tmp_path / "data.arrow"), "train") == TEXTS


def test_reads_what_datasets_saved(tmp_path):
    """`save_to_disk` writes arrow streams with json notes beside them, a folder per split."""
    datasets = pytest.importorskip("datasets")
    data = datasets.DatasetDict(
        {split: datasets.Dataset.from_dict({"text": [split, "x"]}) for split in ("train", "test")}
    )
    data.save_to_disk(tmp_path / "saved")
    source = FilesSource(tmp_path / "saved")
    assert source.splits() == ("train", "test")
    assert texts(source, "test") == ["test", "x"]


def test_txt_keeps_lines_as_they_are(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeff = Title = \r\n\n indented\u2028still the same line".encode())
    source = FilesSource(tmp_path / "a.txt")
    assert texts(source, "train") == [" = Title = ", "", " indented\u2028still the same line"]
    assert source.count("train") == 3


def test_null_is_none(tmp_path):
    source = FilesSource(write(tmp_path / "a.parquet", texts=["one", None]))
    assert texts(source, "train") == ["one", None]


def test_splits_by_name(tmp_path):
    for name in ("wiki.train-00001.txt", "wiki.train-00000.txt", "valid/a.txt", "test/latest.txt"):
        write(tmp_path / name, texts=[name])
    source = FilesSource(tmp_path)
    assert source.splits() == ("train", "validation", "test")
    assert texts(source, "train") == ["wiki.train-00000.txt", "wiki.train-00001.txt"]
    assert texts(source, "validation") == ["valid/a.txt"]


def test_without_split_names_everything_is_train(tmp_path):
    for name in ("latest.txt", "b/c.txt", ".hidden.txt", "_notes/d.txt"):
        write(tmp_path / name, texts=[name])
    assert texts(FilesSource(tmp_path), "train") == ["b/c.txt", "latest.txt"]


def refusal(path, field="text"):
    source = FilesSource(path)
    with pytest.raises(ValueError) as raised:
        texts(source, "train", field)
    return str(raised.value).replace(str(path), path.name)


def test_names_file_and_line_of_what_cannot_be_read(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"fine\nnot \xff utf-8\n")
    assert refusal(tmp_path / "a.txt").startswith("a.txt, line 2: not UTF-8 (invalid start byte at byte 4)")
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n\n{"text": \n')
    assert refusal(tmp_path / "a.jsonl").startswith("a.jsonl, line 3: not JSON (")
    (tmp_path / "b.jsonl").write_text('{"text": "fine"}\n{"body": 1, "id": 2}\n')
    assert refusal(tmp_path / "b.jsonl") == (
        "b.jsonl, line 2 has no field 'text'; it has body, id: "
        "choose one with text_field, prompt_field, completion_field or messages_field"
    )
    (tmp_path / "c.jsonl").write_text("7\n")
    assert refusal(tmp_path / "c.jsonl") == "c.jsonl, line 1: expected an object, found a int"
    (tmp_path / "f.parquet").write_text("no parquet")
    assert refusal(tmp_path / "f.parquet").startswith("f.parquet: not a parquet file, or a damaged one (")
    (tmp_path / "g.arrow").write_text("no arrow at all")
    assert refusal(tmp_path / "g.arrow").startswith("g.arrow: not an arrow file, or a damaged one (")


def test_refuses_folders_it_cannot_understand(tmp_path):
    with pytest.raises(ValueError, match=r"no \.txt, .*, \.arrow \(the first three also as \.gz, .*\) file in it"):
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


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".json", ".parquet", ".arrow"])
def test_begins_anywhere_across_files(tmp_path, suffix):
    """Every start gives the rest of the whole, with the same places: what a resumed or streaming read relies on."""
    for name, some in (("a", TEXTS), ("b", ["four"]), ("c", TEXTS)):
        write(tmp_path / f"{name}{suffix}", texts=some)
    source = FilesSource(tmp_path)
    whole = list(source.records("train", ("text",)))
    assert len(whole) == 9 == source.count("train")
    for start in range(11):
        assert list(source.records("train", ("text",), start)) == whole[start:]


def test_compressed_files_are_read_beside_plain_ones(tmp_path):
    write(tmp_path / "train" / "a.jsonl")
    packed = gzip.compress(write(tmp_path / "b.jsonl", texts=["packed"]).read_bytes())
    (tmp_path / "b.jsonl").unlink()
    (tmp_path / "train" / "b.jsonl.gz").write_bytes(packed)
    assert texts(FilesSource(tmp_path)) == [*TEXTS, "packed"]


def test_refuses_a_file_beside_its_archive(tmp_path):
    """Read as two files, every document of it would be trained on twice."""
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(write(tmp_path / "a.txt").read_bytes()))
    with pytest.raises(ValueError, match=r"has a\.txt and a\.txt\.gz, which would be read as different data"):
        FilesSource(tmp_path)


def test_refuses_a_link_to_nothing(tmp_path):
    write(tmp_path / "a.txt")
    (tmp_path / "b.txt").symlink_to(tmp_path / "gone.txt")
    with pytest.raises(ValueError, match=r"b\.txt is no file that can be read; mend or remove it"):
        FilesSource(tmp_path)


def test_an_empty_file_among_others_is_said(tmp_path, caplog):
    write(tmp_path / "a.txt")
    (tmp_path / "b.txt").touch()
    source = FilesSource(tmp_path)
    source.check("train", ("text",))
    assert texts(source) == TEXTS
    assert "b.txt is empty: it gives no document" in caplog.text


def test_data_names():
    names = ["a.txt", "a.jsonl.gz", "a.json.zst", "a.parquet", "a.parquet.gz", "a.gz", "a.csv", "owner/name"]
    assert [is_data_name(Path(name)) for name in names] == [True] * 4 + [False] * 4


def test_identity_follows_the_content_and_not_the_place(tmp_path):
    """A copy, moved and touched, is the same data: what was tokenised of it is used again."""
    for place in ("here", "there"):
        write(tmp_path / place / "a.txt")
        write(tmp_path / place / "b" / "c.txt")
    os.utime(tmp_path / "there" / "a.txt", (1, 1))
    here, there = (
        FilesSource(tmp_path / place, cache_dir=tmp_path / "cache").identity("train") for place in ("here", "there")
    )
    assert here == there and [name for name, _, _ in here] == ["a.txt", "b/c.txt"]
    write(tmp_path / "there" / "a.txt", texts=["other"])
    assert FilesSource(tmp_path / "there", cache_dir=tmp_path / "cache").identity("train") != here


def test_several_fields_in_the_order_asked_for(tmp_path):
    for suffix in (".jsonl", ".json", ".parquet", ".arrow"):
        source = FilesSource(write(tmp_path / f"data{suffix}"))
        assert [values for _, values in source.records("train", ("text", "id"))] == [
            (text, number) for number, text in enumerate(TEXTS)
        ]


def test_a_stream_does_not_read_files_for_their_name(tmp_path):
    """Known by size and times: another file of the same size and times has the same identity, and no note is taken."""
    path, cache = tmp_path / "a.txt", tmp_path / "cache"
    path.write_text("one\n")
    identity = FilesSource(path, cache_dir=cache, by_content=False).identity("train")
    stat = path.stat()
    path.write_text("two\n")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert FilesSource(path, cache_dir=cache, by_content=False).identity("train") == identity
    assert not cache.exists()


def test_what_takes_long_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr("tp2d_data.progress._SILENT_SECONDS", 0.001)
    path, said = tmp_path / "a.txt", []
    path.write_text("a line of text\n" * 2_000_000)
    source = FilesSource(path, cache_dir=tmp_path / "cache", progress=said.append)
    assert source.size("train") == 30_000_000 and source.count("train") == 2_000_000 and source.identity("train")
    assert said[0] == f"counting the documents of {path}, 0 s" and said[-1] == f"hashing the files of {path}, 0 s"
