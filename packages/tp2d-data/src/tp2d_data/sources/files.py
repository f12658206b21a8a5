"""Records of local files: txt, jsonl, json, parquet and arrow, read one after the other and never held all at once.

txt, jsonl and json may be compressed (`a.jsonl.zst`). A folder is read recursively and its files sorted by name. A
file belongs to the split whose name is a word of its path inside the folder (`train.txt`, `validation/a.jsonl`,
`wiki.test-00000-of-00001.parquet`); where no file names a split, all of them are `train`. Names that begin with . or
_ are not read, nor are the JSON files that `datasets` writes beside its arrow files.
"""

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tp2d_data.progress import Progress, told
from tp2d_data.sources import table_files, text_files
from tp2d_data.sources.compression import CODECS, codec_of
from tp2d_data.sources.content_hashes import content_hashes
from tp2d_data.sources.records import Record, require_fields

logger = logging.getLogger(__name__)

SPLIT_WORDS = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("validation", "valid", "val", "dev", "eval"), "validation"
)

_INFLATION = 5  # a compressed file, or one of a binary format, holds about so many times its size of text
NOTES = ("dataset_dict.json", "dataset_info.json", "state.json")


@dataclass(frozen=True, kw_only=True)
class Format:
    """How one kind of file is read."""

    fields: Callable[[Path], list[str] | None]  # the fields of the first row; None where there is no row
    count: Callable[[Path], int]  # rows
    records: Callable[[Path, tuple[str, ...], int], Iterator[Record]]  # of these fields, from a row on


_JSON = Format(fields=text_files.json_fields, count=text_files.json_count, records=text_files.json_records)
_TEXT = {
    ".txt": Format(fields=text_files.txt_fields, count=text_files.txt_count, records=text_files.txt_records),
    ".jsonl": _JSON,
    ".json": _JSON,
}
FORMATS = _TEXT | {
    ".parquet": Format(
        fields=table_files.parquet_fields, count=table_files.parquet_count, records=table_files.parquet_records
    ),
    ".arrow": Format(fields=table_files.arrow_fields, count=table_files.arrow_count, records=table_files.arrow_records),
}


class FilesSource:
    """A local file, or a folder of files of one format.

    Args:
        path: of the file or folder.
        cache_dir: where the files' content hashes are noted.
        by_content: identify files by their content, which is read once for that; else by their size and times.
        progress: is told where counting or hashing takes more than some seconds.

    Raises:
        ValueError: no file of a known format, files of several formats, or files whose splits are not clear.
    """

    def __init__(
        self,
        path: Path,
        *,
        cache_dir: str | Path | None = None,
        by_content: bool = True,
        progress: Progress = logger.info,
    ) -> None:
        self.name = str(path)
        self._progress = progress
        self._path = path
        self._cache_dir = cache_dir
        self._by_content = by_content
        files = _data_files(path)
        kinds = sorted({_kind(file) for file in files})
        if not files:
            raise ValueError(f"dataset {path}: no {_known()} file in it")
        if len(kinds) > 1:
            examples = ", ".join(next(file.name for file in files if _kind(file) == kind) for kind in kinds)
            raise ValueError(f"dataset {path} mixes formats ({examples}); give a file, or a folder of one format")
        _refuse_copies(path, files)
        self._format = FORMATS[kinds[0]]
        self._splits = _by_split(path, files)

    def splits(self) -> tuple[str, ...]:
        return tuple(self._splits)

    def check(self, split: str, fields: tuple[str, ...]) -> None:
        known = (self._format.fields(file) for file in self._splits[split])
        found = next((fields for fields in known if fields is not None), None)
        if found is None:
            raise ValueError(f"dataset {self.name}: split '{split}' is empty")
        require_fields(f"dataset {self.name}", fields, found)
        for file in self._splits[split]:
            if not file.stat().st_size:
                logger.warning("%s is empty: it gives no document", file)

    def identity(self, split: str) -> Any:
        """Name within the dataset, size and content hash of each file; place and age do not matter."""
        files = self._splits[split]
        if not self._by_content:
            stats = ((file, file.stat()) for file in files)
            return [[str(file.absolute()), stat.st_size, stat.st_mtime_ns] for file, stat in stats]
        hashes = content_hashes(self._path, files, self._cache_dir, progress=self._progress)
        return [[_name(self._path, file), *found] for file, found in zip(files, hashes, strict=True)]

    def size(self, split: str) -> int | None:
        files = self._splits[split]
        return sum(file.stat().st_size * (1 if file.suffix in _TEXT else _INFLATION) for file in files)

    def count(self, split: str) -> int:
        with told(self._progress, f"counting the documents of {self.name}"):
            return sum(map(self._format.count, self._splits[split]))

    def records(self, split: str, fields: tuple[str, ...], start: int = 0) -> Iterator[Record]:
        *others, last = self._splits[split]
        for file in others:
            if start and start >= (rows := self._format.count(file)):
                start -= rows
                continue
            yield from self._format.records(file, fields, start)
            start = 0
        yield from self._format.records(last, fields, start)


def is_data_name(path: Path) -> bool:
    """Whether a file of this name would be read."""
    return bool(_kind(path))


def _kind(path: Path) -> str:
    """The suffix of a file's format, without that of its compression; "" where it is no data file."""
    if codec_of(path):
        inner = Path(path.stem).suffix
        return inner if inner in _TEXT else ""
    return path.suffix if path.suffix in FORMATS else ""


def _known() -> str:
    return f"{', '.join(FORMATS)} (the first three also as {', '.join(CODECS)})"


def _name(root: Path, file: Path) -> str:
    return file.name if file == root else file.relative_to(root).as_posix()


def _data_files(path: Path) -> list[Path]:
    if path.is_file():
        if not _kind(path):
            raise ValueError(f"dataset {path}: a file must be one of {_known()}, not '{''.join(path.suffixes)}'")
        return [path]
    files = (file for file in path.rglob("*") if _kind(file) and file.name not in NOTES and not file.is_dir())
    found = sorted(file for file in files if not any(part[0] in "._" for part in file.relative_to(path).parts))
    for file in found:
        if not file.is_file():  # a link to nothing, or no file of data
            raise ValueError(f"dataset {path}: {_name(path, file)} is no file that can be read; mend or remove it")
    return found


def _refuse_copies(path: Path, files: list[Path]) -> None:
    """A file beside its own archive would be read twice."""
    seen: dict[Path, Path] = {}
    for file in files:
        plain = file.with_suffix("") if codec_of(file) else file
        if (other := seen.setdefault(plain, file)) != file:
            names = f"{_name(path, other)} and {_name(path, file)}"
            raise ValueError(f"dataset {path} has {names}, which would be read as different data; remove one")


def _by_split(path: Path, files: list[Path]) -> dict[str, list[Path]]:
    if path.is_file():
        return {"train": files}
    named: dict[str | None, list[Path]] = {}
    for file in files:
        words = re.split(r"[\W_]+", _name(path, file).lower())
        named.setdefault(next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), None), []).append(file)
    if set(named) == {None}:
        return {"train": files}
    if stray := named.get(None):
        raise ValueError(
            f"dataset {path}: {stray[0].name} names no split (train, validation, test) while other files do; "
            "rename it, or give a single file"
        )
    return {split: named[split] for split in ("train", "validation", "test") if split in named}
