"""`builtin:stdlib`: the documentation text of Python's standard library, real English prose present on every machine.

A document is a docstring of a module, class or function, in the order of the files' paths; the topics of
`pydoc_data.topics` come last. Together about 8,700 documents of 2.2 million characters. The sources are parsed and
never imported, because imports have side effects. A fixed 5 % of the documents, chosen by their content, is the split
`validation`. Cost: about 4 s, once per machine and Python version; the result is kept in the cache folder.
"""

import ast
import json
import logging
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tp2d_data.progress import Progress, told
from tp2d_data.sources.files import FilesSource
from tp2d_data.sources.holdout import is_held_out
from tp2d_data.sources.records import Record, require_fields
from tp2d_data.storage import cache_root, hash_of, publish

logger = logging.getLogger(__name__)

NAME = "builtin:stdlib"
VALIDATION_SHARE = 0.05
_SIZE = 2_500_000  # bytes, about
# Tests, and packages installed beside the library, are not its documentation.
_SKIPPED = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}


class StdlibSource:
    """The built-in corpus as a source of documents with the splits train and validation and the field text."""

    name = NAME

    def __init__(self, cache_dir: str | Path | None = None, *, progress: Progress = logger.info) -> None:
        self._cache_dir = cache_dir
        self._progress = progress

    def splits(self) -> tuple[str, ...]:
        return ("train", "validation")

    def check(self, split: str, fields: tuple[str, ...]) -> None:
        require_fields(f"dataset {NAME}", fields, ["text"])
        _library_files()

    def identity(self, split: str) -> Any:
        return [NAME, split, _library_identity()]

    def size(self, split: str) -> int | None:
        return _SIZE

    def count(self, split: str) -> int:
        return self._files().count(split)

    def records(self, split: str, fields: tuple[str, ...], start: int = 0) -> Iterator[Record]:
        return self._files().records(split, fields, start)

    def _files(self) -> FilesSource:
        folder = cache_root(self._cache_dir) / "stdlib" / hash_of(_library_identity())
        return FilesSource(publish(folder, self._write), cache_dir=self._cache_dir, progress=self._progress)

    def _write(self, folder: Path) -> None:
        with told(self._progress, f"collecting the texts of {NAME}"):
            _write_documents(folder)


def stdlib_documents() -> Iterator[str]:
    """The documents in their order: docstrings by path of the file and place in it, then the topics by name."""
    for path in _library_files():
        yield from _docstrings(ast.parse(path.read_bytes()))
    from pydoc_data.topics import topics

    yield from (topics[name] for name in sorted(topics))


def _docstrings(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and (
        docstring := ast.get_docstring(node)
    ):
        yield docstring
    for block in ("body", "handlers", "orelse", "finalbody"):
        statements = getattr(node, block, None)
        for statement in statements if isinstance(statements, list) else ():
            yield from _docstrings(statement)


def _library_files() -> list[Path]:
    root = Path(sysconfig.get_path("stdlib"))
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = set(folders) - _SKIPPED
        found += [Path(folder, name) for name in names if name.endswith(".py")]
    if not found:
        raise ValueError(f"dataset {NAME}: no sources of the standard library in {root}; give a local file or folder")
    return sorted(found)


def _library_identity() -> Any:
    stats = ((path, path.stat()) for path in _library_files())
    files = hash_of([[str(path), stat.st_size, stat.st_mtime_ns] for path, stat in stats])
    return {"format": 1, "python": sys.version, "files": files, "validation": VALIDATION_SHARE}


def _write_documents(folder: Path) -> None:
    documents = list(stdlib_documents())
    _write_jsonl(folder / "train.jsonl", (text for text in documents if not is_held_out(text, VALIDATION_SHARE)))
    _write_jsonl(folder / "validation.jsonl", (text for text in documents if is_held_out(text, VALIDATION_SHARE)))


def _write_jsonl(path: Path, texts: Iterable[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
