"""Which records are held out for evaluation."""

import json
from hashlib import blake2b
from typing import Any


def is_held_out(text: str, share: float) -> bool:
    """Whether a document belongs to the held-out share (0 to 1), decided by its content and never by its position.

    So equal documents fall on the same side, and added documents do not move the others.
    """
    number = int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())
    return number < share * 2**64


def text_of(values: tuple[Any, ...]) -> str:
    """A record's content for `is_held_out`: a text as it is (null is empty), any other value as JSON."""
    if len(values) == 1 and (values[0] is None or isinstance(values[0], str)):
        return values[0] or ""
    return json.dumps(values, sort_keys=True, default=str)  # other values are refused later, with their place
