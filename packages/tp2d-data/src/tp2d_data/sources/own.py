"""A user's own records: any iterable of mappings with a name and an identity.

The process that tokenises reads them one after the other and keeps none. A resumed run and a second epoch read them
again, so they must be the same in the same order, or have another identity.
"""

import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import blake2b
from typing import Any, Protocol

from tp2d_data.sources.records import Record, picker, require_fields

Row = Mapping[str, Any]
_AGAIN = "a resumed run and a second epoch read them again; give a list, or the function that makes the iterator"


class Source(Protocol):
    """Your own records: any object with these three, such as `Records` or a class of a few lines.

    With `len()` and `[number]` besides, a record in the middle is reached without reading those before it.

    Attributes:
        name: for messages and the cache.
        identity: JSON, such as a version or a date. It must change when the records change: what was tokenised under
            the same name and identity is not read again.
    """

    @property
    def name(self) -> str: ...
    @property
    def identity(self) -> Any: ...
    def __iter__(self) -> Iterator[Row]:
        """The records, each a mapping of fields to values; every call begins with the first one."""


class Records:
    """A `Source` of what you have already.

    Args:
        records: a list; another iterable that begins anew each time (a `datasets.Dataset`); or a function without
            arguments that returns such an iterable or a new iterator (a generator function).
        name: for messages and the cache.
        identity: JSON that changes when the records change, such as a version or a date. None: of a list or tuple, a
            hash of its content.

    Raises:
        ValueError: records that can be read once only, or that need an identity.
    """

    def __init__(
        self, records: Iterable[Row] | Callable[[], Iterable[Row]], *, name: str, identity: Any = None
    ) -> None:
        if isinstance(records, Iterator):
            raise ValueError(
                f"the records of '{name}' are a {type(records).__name__}, which can be read once; {_AGAIN}"
            )
        if not isinstance(records, Iterable) and not callable(records):
            raise ValueError(f"the records of '{name}' are a {type(records).__name__}; give a list or a function")
        if identity is None and not isinstance(records, list | tuple):
            raise ValueError(
                f"the records of '{name}' need an identity: JSON that changes when they change, such as a version"
            )
        self.name = name
        self._records = records
        self._identity = identity

    @property
    def identity(self) -> Any:
        return _content_hash(self.name, self.rows) if self._identity is None else self._identity

    @property
    def rows(self) -> Iterable[Row]:
        """The records as they were given; of a function, what it returns now."""
        return self._records if isinstance(self._records, Iterable) else self._records()

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)


def require_source(value: Any) -> None:
    """Raises ValueError where `value` is no `Source`; reads none of its records."""
    missing = object()
    # Static, because an identity may be a property that costs something.
    lacks = [name for name in ("name", "identity") if inspect.getattr_static(value, name, missing) is missing]
    if lacks or not hasattr(value, "__iter__"):
        raise ValueError(
            f"a dataset is a name, or your own records with a name and an identity, not a {type(value).__name__}; give "
            "Records(records, name=..., identity=...)"
        )
    if not isinstance(value.name, str) or not value.name:
        raise ValueError(f"the name of your own records must be a text that is not empty, not {value.name!r}")


class OwnSource:
    """A `Source` as a dataset with one split. What its code raises is a ValueError that names it and the record."""

    def __init__(self, source: Source) -> None:
        self.name = source.name
        self._source = source

    def splits(self) -> tuple[str, ...]:
        return ("train",)

    def check(self, split: str, fields: tuple[str, ...]) -> None:
        self.identity(split)
        if self._begin() is self._begin():
            raise ValueError(f"dataset {self.name} gives the same iterator twice, which can be read once; {_AGAIN}")
        if next(self.records(split, fields), None) is None:
            raise ValueError(f"dataset {self.name}: split '{split}' is empty")

    def identity(self, split: str) -> Any:
        try:
            identity = self._source.identity
        except Exception as error:
            raise _failed(f"dataset {self.name}, its identity", error) from error
        try:
            json.dumps(identity, sort_keys=True)
        except (TypeError, ValueError) as error:
            raise ValueError(f"dataset {self.name}: its identity is not JSON ({error}); give a text") from error
        if identity is None:
            raise ValueError(f"dataset {self.name}: its identity is None; give JSON that changes when its records do")
        return ["own", self.name, identity]

    def size(self, split: str) -> int | None:
        return None

    def count(self, split: str) -> int:
        rows = self._rows()
        return len(rows) if hasattr(rows, "__len__") else sum(1 for _ in self._numbered(0))

    def records(self, split: str, fields: tuple[str, ...], start: int = 0) -> Iterator[Record]:
        pick = picker(fields)
        for number, row in self._numbered(start):
            where = f"{self.name}, record {number}"
            if not isinstance(row, Mapping):
                raise ValueError(f"{where} is a {type(row).__name__}, not a mapping of fields to values")
            try:
                values = pick(row)
            except Exception as error:
                require_fields(where, fields, row)
                raise _failed(where, error) from error
            yield Record(where, values)

    def _numbered(self, start: int) -> Iterator[tuple[int, Row]]:
        """The records from `start` on with their numbers, which begin at 1."""
        rows, number = self._from(start)
        while True:
            number += 1
            try:
                row = next(rows)
            except StopIteration:
                return
            except Exception as error:
                raise _failed(f"{self.name}, record {number}", error) from error
            if number > start:
                yield number, row

    def _from(self, start: int) -> tuple[Iterator[Row], int]:
        """An iterator, and how many records there are before its first one."""
        rows = self._rows()
        if start and hasattr(rows, "__len__") and hasattr(rows, "__getitem__"):
            return (rows[number] for number in range(start, len(rows))), start
        return self._begin(), 0

    def _rows(self) -> Any:
        try:
            return self._source.rows if isinstance(self._source, Records) else self._source
        except Exception as error:
            raise _failed(f"dataset {self.name}", error) from error

    def _begin(self) -> Iterator[Row]:
        try:
            return iter(self._source)
        except Exception as error:
            raise _failed(f"dataset {self.name}", error) from error


def _failed(where: str, error: Exception) -> ValueError:
    """The user's own code may raise anything; the message says at which record."""
    return ValueError(f"{where}: cannot be read ({type(error).__name__}: {' '.join(str(error).split())})")


def _content_hash(name: str, rows: Iterable[Row]) -> str:
    found = blake2b(digest_size=16)
    for number, row in enumerate(rows, 1):
        try:
            found.update(json.dumps(row, sort_keys=True).encode() + b"\n")
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name}, record {number}: is not JSON ({error}), so identity must be given") from error
    return found.hexdigest()
