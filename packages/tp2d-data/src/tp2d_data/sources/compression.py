"""Files read as bytes, compressed or not: .gz, .bz2, .xz, .zst and .lz4, decompressed as they are read."""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

_BUFFER = 1 << 20
# What the libraries raise for a file that is damaged, cut short, gone or forbidden.
_UNREADABLE = (EOFError, OSError, zlib.error, lzma.LZMAError)


def _arrow(codec: str) -> Callable[[Path], Any]:
    def opened(path: Path) -> Any:
        import pyarrow as pa  # only where such a file is read: most runs need none

        return pa.input_stream(str(path), compression=codec, buffer_size=_BUFFER)

    return opened


CODECS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _arrow("zstd"),
    ".lz4": _arrow("lz4"),
}


def codec_of(path: Path) -> str:
    """The suffix that says how a file is compressed; "" where it is not."""
    return path.suffix if path.suffix in CODECS else ""


def open_bytes(path: Path) -> IO[bytes]:
    """The content of `path`, decompressed."""
    if not codec_of(path):
        return path.open("rb", buffering=_BUFFER)
    if not path.stat().st_size:  # some of the libraries would read it as the archive of an empty file
        raise EOFError("an archive of 0 bytes")
    return io.BufferedReader(CODECS[path.suffix](path), _BUFFER)


@contextmanager
def named(path: Path, place: Callable[[], str]) -> Iterator[None]:
    """Turns the libraries' errors about an unreadable file into a ValueError with its name and `place()`."""
    try:
        yield
    except _UNREADABLE as error:
        reason = (getattr(error, "strerror", None) or str(error)).strip()
        archive = "the archive is damaged or cut short" if codec_of(path) else "it cannot be read"
        raise ValueError(f"{path}, after {place()}: {archive} ({reason})") from error


def lines(path: Path) -> Iterator[bytes]:
    """The lines of `path` with their ends, without the byte order mark that may stand before the first.

    Raises:
        ValueError: the file or archive cannot be read; says after which line.
    """
    number = 0
    with named(path, lambda: f"line {number}"), open_bytes(path) as file:
        for number, line in enumerate(file, 1):
            yield line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
