"""Records of text files: txt (a line is a document), jsonl (an object a line) and json (jsonl, or one list of objects).

Lines that are skipped are not parsed. A list is held piece by piece, however long it is, and elements that are skipped
are parsed. A text file's only field is `text`.
"""

import codecs
import json
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from tp2d_data.sources.compression import lines, named, open_bytes
from tp2d_data.sources.records import Record, picker, require_fields

_PIECE = 1 << 20  # characters
_CUT = 16  # an error so many characters before a piece's end may come from the cut: longer than any literal or escape
_SPACE = re.compile(r"[ \t\r\n]*")


def txt_fields(path: Path) -> list[str] | None:
    return ["text"] if any(not line.isspace() for line in lines(path)) else None


def txt_count(path: Path) -> int:
    return sum(1 for _ in lines(path))


def txt_records(path: Path, fields: tuple[str, ...], start: int) -> Iterator[Record]:
    require_fields(str(path), fields, ["text"])
    copies = len(fields)
    for number, line in islice(enumerate(lines(path), 1), start, None):
        yield Record(f"{path}, line {number}", (_decode(path, number, line).rstrip("\r\n"),) * copies)


def json_fields(path: Path) -> list[str] | None:
    rows = _list_rows(path, 0) if _is_list(path) else _line_rows(path, 0)
    return next((list(row) for _, row in rows), None)


def json_count(path: Path) -> int:
    return sum(1 for _ in _list_rows(path, 0)) if _is_list(path) else sum(1 for _ in _filled_lines(path))


def json_records(path: Path, fields: tuple[str, ...], start: int) -> Iterator[Record]:
    pick = picker(fields)
    for where, row in _list_rows(path, start) if _is_list(path) else _line_rows(path, start):
        try:
            yield Record(where, pick(row))
        except KeyError:
            require_fields(where, fields, row)


def _decode(path: Path, number: int, line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}, line {number}: not UTF-8 ({error.reason} at byte {error.start})") from error


def _parse(path: Path, number: int, line: bytes) -> Any:
    text = _decode(path, number, line)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}, line {number}: not JSON ({error.msg} at character {error.pos})") from error
    except ValueError as error:  # a number of too many digits
        raise ValueError(f"{path}, line {number}: not JSON this can read ({error})") from error
    except RecursionError as error:
        raise ValueError(f"{path}, line {number}: not JSON this can read (nested too deeply)") from error


def _filled_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, each after its number."""
    return ((number, line) for number, line in enumerate(lines(path), 1) if line and not line.isspace())


def _line_rows(path: Path, start: int) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in islice(_filled_lines(path), start, None):
        where = f"{path}, line {number}"
        yield where, _object(where, _parse(path, number, line))


def _object(where: str, row: Any) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected an object, found a {type(row).__name__}")
    return row


# A list of objects, read piece by piece.


def _is_list(path: Path) -> bool:
    """Whether the first character that is not a space opens a list."""
    with named(path, lambda: "line 0"), open_bytes(path) as file:
        while block := file.read(4096):  # not by lines: a whole list may be one
            if filled := block.removeprefix(codecs.BOM_UTF8).lstrip():
                return filled.startswith(b"[")
    return False


def _list_rows(path: Path, start: int) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, row in islice(enumerate(_List(path), 1), start, None):
        where = f"{path}, row {number}"
        yield where, _object(where, row)


class _List:
    """The elements of a file that is one JSON list."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._text = ""  # a piece of the file; the part before _at is parsed
        self._at = 0
        self._line = 1  # of the file, where the piece begins

    def __iter__(self) -> Iterator[Any]:
        with named(self._path, lambda: f"line {self._line}"), open_bytes(self._path) as file:
            self._file, self._decoder = file, codecs.getincrementaldecoder("utf-8-sig")()
            self._expect("[")
            if self._peek() != "]":
                yield self._value()
                while self._peek() == ",":
                    self._at += 1
                    yield self._value()
            self._expect("]")
            if self._peek():
                raise self._wrong("more after the end of the list", self._at)

    def _value(self) -> Any:
        self._peek()
        while True:
            try:
                value, self._at = json.JSONDecoder().raw_decode(self._text, self._at)
                return value
            except json.JSONDecodeError as error:
                cut = error.pos > len(self._text) - _CUT or error.msg.startswith("Unterminated string")
                if not cut or not self._more():
                    raise self._wrong(error.msg, error.pos) from error
            except RecursionError as error:
                raise self._wrong("nested too deeply", self._at) from error

    def _expect(self, character: str) -> None:
        if self._peek() != character:
            raise self._wrong(f"expected {character} or a comma" if character == "]" else "no list", self._at)
        self._at += 1

    def _peek(self) -> str:
        """The next character that is not a space; "" at the end of the file."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def _more(self) -> bool:
        """Reads on, as much again as is left unparsed: an element of any length is parsed a few times at most."""
        left = len(self._text) - self._at
        data = self._file.read(max(_PIECE, left))
        self._line += self._text.count("\n", 0, self._at)
        try:
            self._text = self._text[self._at :] + self._decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            line = self._line + self._text.count("\n", self._at) + error.object[: error.start].count(b"\n")
            raise ValueError(f"{self._path}, line {line}: not UTF-8 ({error.reason})") from error
        self._at = 0
        return bool(data)

    def _wrong(self, reason: str, position: int) -> ValueError:
        line = self._line + self._text.count("\n", 0, position)
        return ValueError(f"{self._path}, line {line}: not JSON ({reason})")
