"""Documents of local files: txt, jsonl, json, parquet and arrow, read one after the other and never held all at once.

A folder is read recursively and its files sorted by name. A file belongs to the split whose name is a word of its
path inside the folder (`train.txt`, `validation/a.jsonl`, `wiki.test-00000-of-00001.parquet`); where no file names
a split, all of them are `train`. Names that begin with . or _ and what `datasets` notes beside its arrow files are
not read.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

SPLIT_WORDS = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("validation", "valid", "val", "dev", "eval"), "validation"
)

NOTES = ("dataset_dict.json", "dataset_info.json", "state.json")


@dataclass(frozen=True, kw_only=True)
class Format:
    """How one kind of file is read."""

    fields: Callable[[Path], list[str] | None]  # the fields of the first row; None where there is no row
    count: Callable[[Path], int]  # rows
    texts: Callable[[Path, str], Iterator[str]]  # of one field, row by row; null is an empty document


class FilesSource:
    """A local file, or a folder of files of one format."""

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        files = _data_files(path)
        suffixes = sorted({file.suffix for file in files})
        if not files:
            raise ValueError(f"dataset {path}: no {', '.join(FORMATS)} file in it")
        if len(suffixes) > 1:
            examples = ", ".join(next(file.name for file in files if file.suffix == suffix) for suffix in suffixes)
            raise ValueError(f"dataset {path} mixes formats ({examples}); give a file, or a folder of one format")
        self._format = FORMATS[suffixes[0]]
        self._splits = _by_split(path, files)

    def splits(self) -> tuple[str, ...]:
        return tuple(self._splits)

    def check(self, split: str, field: str) -> None:
        known = (self._format.fields(file) for file in self._splits[split])
        found = next((fields for fields in known if fields is not None), None)
        if found is None:
            raise ValueError(f"dataset {self.name}: split '{split}' is empty")
        if field not in found:
            raise ValueError(
                f"dataset {self.name} has no field '{field}'; it has {', '.join(found)}: choose one with text_field"
            )

    def identity(self, split: str) -> Any:
        stats = ((file, file.stat()) for file in self._splits[split])
        return [[str(file), stat.st_size, stat.st_mtime_ns] for file, stat in stats]

    def count(self, split: str) -> int:
        return sum(map(self._format.count, self._splits[split]))

    def texts(self, split: str, field: str) -> Iterator[str]:
        return chain.from_iterable(self._format.texts(file, field) for file in self._splits[split])


def _data_files(path: Path) -> list[Path]:
    if path.is_file():
        if path.suffix not in FORMATS:
            raise ValueError(f"dataset {path}: a file must be one of {', '.join(FORMATS)}, not '{path.suffix}'")
        return [path]
    files = (file for file in path.rglob("*") if file.suffix in FORMATS and file.name not in NOTES and file.is_file())
    return sorted(file for file in files if not any(part[0] in "._" for part in file.relative_to(path).parts))


def _by_split(path: Path, files: list[Path]) -> dict[str, list[Path]]:
    if path.is_file():
        return {"train": files}
    named: dict[str | None, list[Path]] = {}
    for file in files:
        words = re.split(r"[\W_]+", file.relative_to(path).as_posix().lower())
        named.setdefault(next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), None), []).append(file)
    if set(named) == {None}:
        return {"train": files}
    if stray := named.get(None):
        raise ValueError(
            f"dataset {path}: {stray[0].name} names no split (train, validation, test) while other files do; "
            "rename it, or give a single file"
        )
    return {split: named[split] for split in ("train", "validation", "test") if split in named}


# txt: a line is a document.


def _txt_lines(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}, line {number}: not UTF-8 ({error.reason} at byte {error.start})") from error


def _txt_fields(path: Path) -> list[str] | None:
    return ["text"] if any(line.strip() for line in _txt_lines(path)) else None


def _txt_count(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


def _txt_texts(path: Path, field: str) -> Iterator[str]:
    return _txt_lines(path)


# json: one list of objects, or an object a line (jsonl); blank lines are no rows.


def _is_json_list(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"[")


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """Rows, each after the place it is found at."""
    if _is_json_list(path):
        rows = _parse(str(path), path.read_bytes())
        return ((f"{path}, row {number}", row) for number, row in enumerate(rows, 1))
    lines = ((f"{path}, line {number}", line) for number, line in enumerate(_txt_lines(path), 1))
    return ((where, _parse(where, line)) for where, line in lines if line.strip())


def _parse(where: str, text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:  # of the syntax or of the encoding
        raise ValueError(f"{where}: not JSON ({error})") from error


def _json_object(where: str, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected an object, found a {type(row).__name__}")
    return row


def _json_fields(path: Path) -> list[str] | None:
    return next((list(_json_object(where, row)) for where, row in _json_rows(path)), None)


def _json_count(path: Path) -> int:
    if _is_json_list(path):
        return sum(1 for _ in _json_rows(path))
    return sum(1 for line in _txt_lines(path) if line.strip())


def _json_texts(path: Path, field: str) -> Iterator[str]:
    for where, row in _json_rows(path):
        _require_field(where, field, _json_object(where, row))
        yield as_text(where, field, row[field])


# parquet and arrow: a row is a document. pyarrow is imported where such a file is read: most runs need none.


def _open_parquet(path: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path}: not a parquet file ({error})") from error


def _parquet_fields(path: Path) -> list[str] | None:
    with _open_parquet(path) as file:
        return file.schema_arrow.names if file.metadata.num_rows else None


def _parquet_count(path: Path) -> int:
    with _open_parquet(path) as file:
        return file.metadata.num_rows


def _parquet_texts(path: Path, field: str) -> Iterator[str]:
    with _open_parquet(path) as file:
        _require_field(str(path), field, file.schema_arrow.names)
        yield from _column_texts(path, field, file.iter_batches(batch_size=1024, columns=[field]))


def _arrow_batches(path: Path) -> Iterator[Any]:
    """Record batches of either arrow format: a stream, as `datasets` writes it, or a file, which has a magic word."""
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        is_file = source.read(6) == b"ARROW1"
        source.seek(0)
        try:
            reader = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{path}: not an arrow file ({error})") from error
        yield from map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader


def _arrow_fields(path: Path) -> list[str] | None:
    return next((batch.schema.names for batch in _arrow_batches(path) if batch.num_rows), None)


def _arrow_count(path: Path) -> int:
    return sum(batch.num_rows for batch in _arrow_batches(path))


def _arrow_texts(path: Path, field: str) -> Iterator[str]:
    return _column_texts(path, field, _arrow_batches(path))


def _column_texts(path: Path, field: str, batches: Iterable[Any]) -> Iterator[str]:
    numbers = count(1)
    for batch in batches:
        _require_field(str(path), field, batch.schema.names)
        for value, number in zip(batch.column(field).to_pylist(), numbers, strict=False):
            yield as_text(f"{path}, row {number}", field, value)


def _require_field(where: str, field: str, fields: Iterable[str]) -> None:
    if field not in fields:
        raise ValueError(f"{where}: no field '{field}'; it has {', '.join(fields)}")


def as_text(where: str, field: str, value: Any) -> str:
    """A field's value as a document: null is an empty one, anything else but text a ValueError that says where."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(
            f"{where}: field '{field}' holds a {type(value).__name__}, not text; choose another with text_field"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, which json can spell and no tokenizer takes
        raise ValueError(f"{where}: field '{field}' is not valid Unicode ({error.reason})") from error
    return value


_JSON = Format(fields=_json_fields, count=_json_count, texts=_json_texts)
FORMATS = {
    ".txt": Format(fields=_txt_fields, count=_txt_count, texts=_txt_texts),
    ".jsonl": _JSON,
    ".json": _JSON,
    ".parquet": Format(fields=_parquet_fields, count=_parquet_count, texts=_parquet_texts),
    ".arrow": Format(fields=_arrow_fields, count=_arrow_count, texts=_arrow_texts),
}
