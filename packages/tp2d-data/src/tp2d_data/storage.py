"""Folders that appear whole or not at all, written once per machine however many processes ask for them.

A folder is written under a temporary name beside its place, flushed to the disk and renamed; a file lock lets one
process write while the others wait. Whoever dies while writing leaves a temporary folder only, which the next writer
on that machine removes.
"""

import json
import logging
import os
import shutil
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

logger = logging.getLogger(__name__)


def cache_root(cache_dir: str | Path | None = None) -> Path:
    """The folder of everything cached: `cache_dir`, else `$TP2D_CACHE`, else `tp2d` in the user's cache folder."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    if chosen := os.environ.get("TP2D_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tp2d"


def digest(identity: Any) -> str:
    """32 hexadecimal digits that name `identity`, which must be JSON."""
    return blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=16).hexdigest()


def publish(folder: Path, write: Callable[[Path], None]) -> Path:
    """Returns `folder`, calling `write(temporary_folder)` first where it does not exist yet.

    Raises:
        ValueError: the place cannot be written. What `write` raises passes through and leaves nothing behind.
    """
    if folder.exists():
        return folder
    require_writable(folder.parent)
    with _locked(folder.with_name(folder.name + ".lock")):
        if not folder.exists():
            _write(folder, write)
    return folder


class Damaged(ValueError):
    """What is kept in a folder is not what was written there."""

    def __init__(self, what: str, folder: Path, error: Exception) -> None:
        super().__init__(f"the cached {what} in {folder} are damaged ({error}); delete that folder")
        self.folder = folder


def withdraw(folder: Path) -> None:
    """Removes what `publish` made: for others it is there whole or gone."""
    gone = folder.with_name(f"{folder.name}.tmp-{socket.gethostname()}-{uuid.uuid4().hex}")
    with suppress(FileNotFoundError):  # another process was first
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def require_writable(folder: Path) -> None:
    """Makes `folder` where it is not there yet; ValueError where it cannot be made or written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"the cache folder {folder} cannot be made ({error}); set cache_dir or TP2D_CACHE") from error
    if not os.access(folder, os.W_OK):
        raise ValueError(f"the cache folder {folder} cannot be written; set cache_dir or TP2D_CACHE")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        logger.info("another process is writing %s: waiting for it", path.with_suffix(""))
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _write(folder: Path, write: Callable[[Path], None]) -> None:
    # The host's name keeps this sweep from the work of another host where storage is shared but locks are not.
    prefix = f"{folder.name}.tmp-{socket.gethostname()}-"
    for abandoned in folder.parent.glob(prefix + "*"):
        shutil.rmtree(abandoned)
    temporary = folder.with_name(prefix + uuid.uuid4().hex)
    temporary.mkdir()
    try:
        write(temporary)
        _flush(temporary)
        with suppress(FileExistsError):  # another host sharing the storage was first
            _rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _rename(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError as error:
        if target.exists():
            raise FileExistsError(target) from error
        raise
    _flush(target.parent, files=False)


def _flush(folder: Path, *, files: bool = True) -> None:
    """Makes sure that names and contents are on the disk, so that a rename cannot outlive what it names."""
    for path in (*(folder.iterdir() if files else ()), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
