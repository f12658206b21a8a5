"""Records: the rows of a source, before anything is tokenised."""

from collections.abc import Callable, Iterable, Mapping
from operator import itemgetter
from typing import Any, NamedTuple

OPTIONS = "text_field, prompt_field, completion_field or messages_field"


class Record(NamedTuple):
    """One row of a corpus: the fields asked for, and their place, for error messages."""

    where: str  # such as "corpus/a.jsonl, line 12", or "corpus/b.parquet, row 3"
    values: tuple[Any, ...]  # of the fields asked for, in their order; `Task` checks their types


def require_fields(where: str, fields: Iterable[str], found: Iterable[str]) -> None:
    """Raises ValueError where one of `fields` is not among those `found`."""
    found = list(found)
    for field in fields:
        if field not in found:
            raise ValueError(
                f"{where} has no field '{field}'; it has {', '.join(found) or 'none'}: choose one with {OPTIONS}"
            )


def picker(fields: tuple[str, ...]) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    """A function that takes the values of `fields` out of a row; it raises KeyError where one is missing."""
    if len(fields) == 1:  # itemgetter would then give the value itself
        (field,) = fields
        return lambda row: (row[field],)
    return itemgetter(*fields)
