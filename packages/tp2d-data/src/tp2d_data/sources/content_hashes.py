"""Hashes of files' contents. Each file is read once; its hash is noted in the cache folder.

A note holds as long as the file's size and times do. No note is taken of a file that changed within the last two
seconds: it could change again and keep its size and times.
"""

import json
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from hashlib import blake2b, file_digest
from pathlib import Path

from filelock import FileLock

from tp2d_data.progress import Progress, told
from tp2d_data.storage import cache_root, hash_of, require_writable, write_whole

logger = logging.getLogger(__name__)

_FRESH_NS = 2_000_000_000
Note = list[int | str]  # size, time of change, time of the inode's change, hash


def content_hashes(
    root: Path, files: Sequence[Path], cache_dir: str | Path | None, *, progress: Progress = logger.info
) -> list[tuple[int, str]]:
    """Size and hash of the content of each of `files`, which are of the dataset `root`. About 1 s for 1 GB.

    Raises:
        ValueError: a file cannot be read, or changes while it is; the cache folder cannot be written.
    """
    path = cache_root(cache_dir) / "digests" / f"{hash_of(str(root.absolute()))}.json"
    notes = _noted(path)
    if not all(_holds(notes, file) for file in files):
        require_writable(path.parent)
        with FileLock(path.with_suffix(".lock")):  # of several ranks of a machine one reads, the others wait
            notes = _noted(path)
            with told(progress, f"hashing the files of {root}"):
                fresh = {str(file.absolute()): _read(file) for file in files if not _holds(notes, file)}
            notes |= fresh
            write_whole(path, json.dumps({name: note for name, note in notes.items() if not _is_fresh(note)}))
    found = (notes[str(file.absolute())] for file in files)
    return [(int(note[0]), str(note[3])) for note in found]


def _holds(notes: dict[str, Note], file: Path) -> bool:
    note = notes.get(str(file.absolute()))
    return note is not None and note[:3] == _stat(file)


def _stat(file: Path) -> Note:
    try:
        stat = file.stat()
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror})") from error
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _read(file: Path) -> Note:
    before = _stat(file)
    try:
        with file.open("rb") as opened:
            content_hash = file_digest(opened, lambda: blake2b(digest_size=16)).hexdigest()
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror})") from error
    if _stat(file) != before:
        raise ValueError(f"{file} changes while it is read; start again when it is whole")
    return [*before, content_hash]


def _is_fresh(note: Note) -> bool:
    return 0 <= time.time_ns() - max(int(note[1]), int(note[2])) < _FRESH_NS


def _noted(path: Path) -> dict[str, Note]:
    # Without notes, or with damaged ones, the files are read again, which gives the same.
    with suppress(OSError, ValueError):
        notes = json.loads(path.read_text())
        if isinstance(notes, dict):
            return notes
    return {}
