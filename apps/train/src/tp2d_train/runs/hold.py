"""Who trains a run now: one process at a time, on whatever machine.

Two things say so. The lock on `.lock` is the kernel's: it is gone with its process, however that ends, but on many
shared file systems another machine does not see it. `.holder.json` is seen by all: its process rewrites it every few
seconds. Whoever has the lock and finds the file of another machine watches it. A file that changes belongs to a live
run. One that stays as it is was left by a killed one. No clocks are compared.
"""

import dataclasses
import errno
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self, TextIO

from tp2d_train.runs.folder import RunFolder, replace_file

BEAT_SECONDS = 4.0
WATCHED_BEATS = 3  # one may be late: a busy process, a slow network
BOOT = Path("/proc/sys/kernel/random/boot_id")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Holder:
    """The process that trains a run, as its file says it.

    Args:
        machine: a mark of its running kernel.
        host: the machine's name, for people.
        pid: its number there.
        token: drawn once by every process.
        every: seconds between two beats.
        beat: counts them.
    """

    machine: str
    host: str
    pid: int
    token: str
    every: float
    beat: int = 0

    @classmethod
    def here(cls) -> Self:
        """This process."""
        return cls(
            machine=this_machine(),
            host=socket.gethostname(),
            pid=os.getpid(),
            token=secrets.token_hex(8),
            every=BEAT_SECONDS,
        )

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The holder that a file names; None where there is no file, or it is being written for the first time."""
        try:
            return cls(**json.loads(path.read_bytes()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def encode(self) -> bytes:
        """The content of the file."""
        return json.dumps(dataclasses.asdict(self)).encode()

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}"


@contextmanager
def held(folder: RunFolder) -> Iterator[None]:
    """Holds a run for this process within the block; the folder is made where it is missing.

    Raises:
        ValueError: another process holds it, on this machine or on another one.
    """
    folder.path.mkdir(parents=True, exist_ok=True)
    own = Holder.here()
    with folder.lock.open("a") as file:
        _claim(folder, own, locked=_lock(file, folder))
        end = threading.Event()
        beating = threading.Thread(target=_beat, args=(folder.holder, own, end), daemon=True)
        beating.start()
        try:
            yield
        finally:
            end.set()
            beating.join()
            folder.holder.unlink(missing_ok=True)


def this_machine() -> str:
    """A mark of the running kernel, whose locks reach all its processes; two machines may have one host name."""
    return BOOT.read_text(encoding="ascii").strip() if BOOT.exists() else socket.gethostname()


def _lock(file: TextIO, folder: RunFolder) -> bool:
    """Takes the lock; returns False where the file system has none, so that only the holder's file tells."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise _refusal(folder, Holder.read(folder.holder)) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
        return False
    return True


def _claim(folder: RunFolder, own: Holder, *, locked: bool) -> None:
    """Makes the holder's file. Of several machines that try at once, one succeeds."""
    while True:
        with suppress(FileExistsError), folder.holder.open("xb") as file:
            file.write(own.encode())
            return
        found = Holder.read(folder.holder)
        if not locked or found is None or found.machine != own.machine:
            _watch(folder, found)
        _remove(folder, found, aside=folder.holder.with_name(f"{folder.holder.name}.{own.token}"))


def _watch(folder: RunFolder, found: Holder | None) -> None:
    """Raises `ValueError` where the holder's file changes; returns when it has not for some beats, or is gone."""
    seconds = WATCHED_BEATS * (found.every if found else BEAT_SECONDS)
    who = found or "another machine"
    print(f"looking for {seconds:.0f} s whether {who} still trains run {folder.path.name!r}", flush=True)
    end = time.monotonic() + seconds
    while time.monotonic() < end and folder.holder.exists():
        time.sleep(seconds / 30)
        if (now := Holder.read(folder.holder)) not in (None, found):
            raise _refusal(folder, now)


def _remove(folder: RunFolder, found: Holder | None, *, aside: Path) -> None:
    """Removes the file of a dead holder, and not that of a live one which came meanwhile."""
    with suppress(FileNotFoundError):
        folder.holder.rename(aside)
        taken = Holder.read(aside)
        aside.unlink()
        if taken != found:
            raise _refusal(folder, taken)  # its next beat writes the file anew


def _beat(path: Path, own: Holder, end: threading.Event) -> None:
    beat = 0
    while not end.wait(own.every):
        beat += 1
        with suppress(OSError):  # a full disk or a lost server: the next beat may come through
            replace_file(path, dataclasses.replace(own, beat=beat).encode())


def _refusal(folder: RunFolder, holder: Holder | None) -> ValueError:
    return ValueError(
        f"run {folder.path.name!r} is being trained by {holder or 'another process'} now: "
        "stop that one first, or choose another --name"
    )
