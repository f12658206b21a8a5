"""Files that are on the disk when a call returns, and not only in the operating system's memory."""

import os
from pathlib import Path


def write_synced(path: Path, content: bytes) -> None:
    """Write a file and bring it to the disk. A process killed meanwhile can leave a part of it."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a process killed meanwhile leaves the whole file or none, by a rename in its directory."""
    temporary = path.with_name(f"{path.name}.tmp")
    write_synced(temporary, content)
    temporary.replace(path)
    sync_directory(path.parent)


def sync_file(path: Path) -> None:
    """Bring a file that was written before to the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Bring a directory's entries (names created, renamed, removed) to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
