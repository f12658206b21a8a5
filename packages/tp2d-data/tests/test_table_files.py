import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tp2d_data.sources.table_files import _rows_of, arrow_records, parquet_count, parquet_records

CHATS = [[{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": "yes"}] for i in range(5000)]


def write_arrow(path, table, rows=1000):
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)


@pytest.fixture
def both(tmp_path):
    """The same 5,000 chats as parquet and as arrow: the reader of each, and its file."""
    table = pa.table({"id": list(range(5000)), "messages": CHATS})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=700)
    write_arrow(tmp_path / "a.arrow", table)
    return (parquet_records, tmp_path / "a.parquet"), (arrow_records, tmp_path / "a.arrow")


@pytest.mark.parametrize("start", [0, 1, 699, 700, 1024, 4999, 5000, 6000])
def test_begins_at_any_row(both, start):
    for read, path in both:
        records = list(read(path, ("messages", "id"), start))
        assert [values for _, values in records] == list(zip(CHATS, range(5000), strict=True))[start:]
        assert all(record.where == f"{path}, row {number}" for number, record in enumerate(records, start + 1))


def test_batches_are_bounded_in_bytes():
    """1,000 documents of 10 MB are read one or two at a time."""
    assert _rows_of(1000, 1000 * 10_000_000) == 1
    assert _rows_of(1000, 1000 * 1_000_000) == 16
    assert _rows_of(100_000, 100_000 * 10) == 1024
    assert _rows_of(0, 0) == 1


def test_damage_is_refused_by_name(both):
    for read, path in both:
        content = path.read_bytes()
        for damaged in (content[: len(content) // 2], content[:100] + b"\xff" * 5000 + content[5100:], b""):
            path.write_bytes(damaged)
            with pytest.raises(ValueError, match=rf"{path.name}: not an? {path.suffix[1:]} file, or a damaged one"):
                list(read(path, ("messages",), 0))


def test_text_that_is_not_utf8_is_named_by_rows(tmp_path):
    """Nothing checks the bytes of a string column when it is written."""
    table = pa.table({"text": invalid([b"fine", b"\xff"])})
    pq.write_table(table, tmp_path / "a.parquet")
    write_arrow(tmp_path / "a.arrow", table)
    for read, path in ((parquet_records, tmp_path / "a.parquet"), (arrow_records, tmp_path / "a.arrow")):
        with pytest.raises(ValueError, match=rf"{path.name}, rows 1 to 2: text that is not UTF-8"):
            list(read(path, ("text",), 0))


def invalid(values):
    binary = pa.array(values, pa.binary())
    return pa.StringArray.from_buffers(len(values), binary.buffers()[1], binary.buffers()[2])


def test_missing_field_and_count(both):
    for read, path in both:
        with pytest.raises(ValueError, match=rf"{path.name} has no field 'text'; it has id, messages"):
            list(read(path, ("text",), 0))
    assert parquet_count(both[0][1]) == 5000
