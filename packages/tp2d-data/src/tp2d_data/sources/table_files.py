"""Records of parquet and arrow files: a row is a record.

Rows that are skipped are not decoded. pyarrow is imported only where such a file is read, because most runs need none.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from tp2d_data.sources.records import Record, require_fields

_ROWS, _BYTES = 1024, 16 << 20  # of a batch, whichever is less: this bounds memory however long the documents are


@contextmanager
def _readable(path: Path, kind: str) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not {kind}, or a damaged one ({' '.join(str(error).split())})") from error


@contextmanager
def _open_parquet(path: Path) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with _readable(path, "a parquet file"), pq.ParquetFile(path) as file:
        yield file


def parquet_fields(path: Path) -> list[str] | None:
    with _open_parquet(path) as file:
        return file.schema_arrow.names if file.metadata.num_rows else None


def parquet_count(path: Path) -> int:
    with _open_parquet(path) as file:
        return file.metadata.num_rows


def parquet_records(path: Path, fields: tuple[str, ...], start: int) -> Iterator[Record]:
    with _open_parquet(path) as file:
        require_fields(str(path), fields, file.schema_arrow.names)
        before = 0
        for number in range(file.num_row_groups):
            group = file.metadata.row_group(number)
            if before + group.num_rows > start:
                rows = _rows_of(group.num_rows, group.total_byte_size)
                batches = file.iter_batches(batch_size=rows, row_groups=[number], columns=list(dict.fromkeys(fields)))
                yield from _records(path, fields, batches, before=before, start=start)
            before += group.num_rows


def _arrow_batches(path: Path) -> Iterator[Any]:
    """Record batches of either arrow format: a stream, as `datasets` writes it, or a file, which begins with ARROW1."""
    import pyarrow as pa

    with _readable(path, "an arrow file"), pa.memory_map(str(path)) as source:
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        reader = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
        yield from map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader


def arrow_fields(path: Path) -> list[str] | None:
    return next((batch.schema.names for batch in _arrow_batches(path) if batch.num_rows), None)


def arrow_count(path: Path) -> int:
    return sum(batch.num_rows for batch in _arrow_batches(path))


def arrow_records(path: Path, fields: tuple[str, ...], start: int) -> Iterator[Record]:
    pieces = (
        batch.slice(begin, rows)
        for batch in _arrow_batches(path)
        for rows in [_rows_of(batch.num_rows, batch.nbytes)]
        for begin in range(0, batch.num_rows, rows)
    )
    return _records(path, fields, pieces, before=0, start=start)


def _rows_of(rows: int, size: int) -> int:
    """Rows of a piece, given the rows and bytes of the whole."""
    return max(1, min(_ROWS, _BYTES * rows // max(1, size)))


def _records(
    path: Path, fields: tuple[str, ...], batches: Iterable[Any], *, before: int, start: int
) -> Iterator[Record]:
    """Records from the `start`-th of the file on, of batches that begin after the `before`-th."""
    for batch in batches:
        skipped = min(max(0, start - before), batch.num_rows)
        if skipped < batch.num_rows:
            require_fields(str(path), fields, batch.schema.names)
            numbers = count(before + skipped + 1)
            for values, number in zip(_columns(path, fields, batch, skipped, before), numbers, strict=False):
                yield Record(f"{path}, row {number}", values)
        before += batch.num_rows


def _columns(path: Path, fields: tuple[str, ...], batch: Any, skipped: int, before: int) -> Iterator[tuple[Any, ...]]:
    try:
        return zip(*(batch.column(field).slice(skipped).to_pylist() for field in fields), strict=True)
    except UnicodeDecodeError as error:
        rows = f"rows {before + skipped + 1} to {before + batch.num_rows}"
        raise ValueError(f"{path}, {rows}: text that is not UTF-8 ({error.reason})") from error
