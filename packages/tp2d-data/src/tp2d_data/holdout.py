"""Which records are held out for evaluation."""

import json
from hashlib import blake2b
from typing import Any


def is_held_out(text: str, share: float) -> bool:
    """Whether a document belongs to the held-out share (0 to 1): decided by its content, never by its position.

    So equal documents fall on the same side, and adding others moves none.
    """
    number = int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())
    return number < share * 2**64


def text_of(values: tuple[Any, ...]) -> str:
    """The content of a record as `is_held_out` takes it: a text itself (null is empty), anything else its JSON."""
    if len(values) == 1 and (values[0] is None or isinstance(values[0], str)):
        return values[0] or ""
    return json.dumps(values, sort_keys=True, default=str)  # what is no JSON is refused later, with its place
