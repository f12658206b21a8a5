"""Whether the folder of the runs can do what checkpoints and run folders need: write, fsync, rename, lock, be shared.

The files of a check lie in a folder of their own, which is removed in the end.
"""

import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tp2d_ckpt.files import sync_directory, write_atomically

from tp2d_train.doctor.finding import Finding, Level

GIB = 1 << 30
LEAST_DISK = 2 * GIB  # a checkpoint of the built-in model takes 0.02, one of 1B parameters 12
SLOW_SECONDS = 1.0  # to bring a megabyte to the disk
DRIVER = "driver"


@contextmanager
def scratch_folder(storage: Path) -> Iterator[Path]:
    """A new folder in the storage, which is made where it is missing; afterwards nothing of it is left.

    Raises:
        OSError: it cannot be made.
    """
    made = [folder for folder in (storage, *storage.parents) if not folder.exists()]
    folder = storage / f".doctor-{secrets.token_hex(6)}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in made:
            if not any(parent.iterdir()):
                parent.rmdir()


def check_storage(folder: Path) -> Iterator[Finding]:
    """Write, fsync and rename as a checkpoint does, a lock, and the free disk.

    Args:
        folder: a scratch folder.
    """
    start = time.monotonic()
    write_atomically(folder / "written", b"x" * (1 << 20))
    target = folder / "renamed"
    (folder / "written").rename(target)
    sync_directory(folder)
    seconds = time.monotonic() - start
    if target.stat().st_size != 1 << 20:
        raise OSError(f"{target} has another size than was written")
    slow = seconds > SLOW_SECONDS
    yield Finding(
        level=Level.WARNING if slow else Level.OK,
        check="storage",
        text=f"{folder.parent}: write, fsync and rename of 1 MB in {seconds * 1000:.0f} ms",
        mend="checkpoints will be slow: choose another --storage-path" if slow else "",
    )
    yield _lock(folder / "lock")
    yield _disk(folder)


def _lock(path: Path) -> Finding:
    """Whether a file that one has locked is locked for another."""
    mend = "a second start of one run is then noticed by its holder's file, seconds later"
    with path.open("w") as first, path.open("w") as second:
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return Finding(level=Level.WARNING, check="lock", text=f"the storage has no locks ({error})", mend=mend)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return Finding(check="lock", text="a locked file is locked")
    return Finding(level=Level.WARNING, check="lock", text="two processes can hold one lock", mend=mend)


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free
    text = f"{free / GIB:.1f} GiB free"
    if free >= LEAST_DISK:
        return Finding(check="disk", text=text)
    text += f", less than {LEAST_DISK / GIB:.0f} GiB"
    return Finding(level=Level.WARNING, check="disk", text=text, mend="make room, or choose another --storage-path")


def refused_storage(storage: Path, error: OSError) -> Finding:
    """The finding where no folder can be made there."""
    text = f"{storage} cannot be written: {error.strerror or error}"
    mend = f"make it writable for {os.environ.get('USER') or f'user {os.getuid()}'}, or choose another --storage-path"
    return Finding(level=Level.PROBLEM, check="storage", text=text, mend=mend)


def mark(who: str) -> str:
    """The name of the file of the driver or of one worker."""
    return f"mark-{who}"


def leave_mark(folder: Path, who: str) -> None:
    """Writes the file of `who`, which has that as its content."""
    write_atomically(folder / mark(who), who.encode())


def sees_mark(folder: Path, who: str) -> bool:
    """Whether this process finds what `who` has written."""
    path = folder / mark(who)
    return path.exists() and path.read_bytes() == who.encode()


def shared(folder: Path, *, workers: dict[str, bool], who: str) -> Finding:
    """What driver and workers see of each other's files.

    Args:
        folder: the scratch folder.
        workers: each worker's name -> whether it saw the driver's file.
        who: what the workers are, for the line.
    """
    blind = [name for name, saw in workers.items() if not saw]
    unseen = [name for name in workers if not sees_mark(folder, name)]
    if not blind and not unseen:
        return Finding(check="same storage", text=f"the driver and {len(workers)} {who} see each other's files")
    return Finding(
        level=Level.PROBLEM,
        check="same storage",
        text=f"{', '.join(sorted({*blind, *unseen}))}: their {folder.parent} is not the driver's",
        mend="give a --storage-path that every node mounts",
    )
