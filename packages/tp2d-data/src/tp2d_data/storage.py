"""Files and folders that appear whole or not at all; a folder is written once per machine, whoever asks for it.

A folder is written under a temporary name beside its place, flushed to the disk and renamed. A file lock lets one
process write while the others wait. A process that dies while writing leaves only a temporary folder, which the next
writer on that machine removes.
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


def hash_of(identity: Any) -> str:
    """The hash of `identity`, which must be JSON: 32 hexadecimal digits."""
    return blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=16).hexdigest()


def write_whole(path: Path, text: str) -> None:
    """Writes `text` to the file `path` under a temporary name and renames it: others see the old file or the new."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    temporary.write_text(text)
    temporary.replace(path)


def publish(folder: Path, write: Callable[[Path], None]) -> Path:
    """Returns `folder`; where it does not exist yet, `write(temporary_folder)` makes it first.

    Raises:
        ValueError: the place cannot be written. An error of `write` passes through and leaves nothing behind.
    """
    if folder.exists():
        return folder
    require_writable(folder.parent)
    with locked(folder.with_name(folder.name + ".lock")):
        if not folder.exists():
            _write(folder, write)
    return folder


class Damaged(ValueError):
    """A cached folder does not hold what was written there."""

    def __init__(self, what: str, folder: Path, error: Exception) -> None:
        super().__init__(f"the cached {what} in {folder} are damaged ({error}); delete that folder")
        self.folder = folder


def withdraw(folder: Path) -> None:
    """Removes a folder that `publish` made; other processes see it whole or not at all."""
    gone = folder.with_name(f"{folder.name}.tmp-{socket.gethostname()}-{uuid.uuid4().hex}")
    with suppress(FileNotFoundError):  # another process was first
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def require_writable(folder: Path) -> None:
    """Makes `folder` where it does not exist; ValueError where it cannot be made or written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"the cache folder {folder} cannot be made ({error}); set TP2D_CACHE to another folder"
        ) from error
    if not os.access(folder, os.W_OK):
        raise ValueError(f"the cache folder {folder} cannot be written; set TP2D_CACHE to another folder")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Lets one process of the machine at a time into the block; `path` is the lock's file."""
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
    # With the host's name, the sweep leaves another host's folders alone where storage is shared but locks are not.
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
    """Brings names and contents to the disk, so that after a crash no renamed folder lacks its contents."""
    for path in (*(folder.iterdir() if files else ()), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
