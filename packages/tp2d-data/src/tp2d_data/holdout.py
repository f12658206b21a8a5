"""Which documents are held out for evaluation."""

from hashlib import blake2b


def is_held_out(text: str, share: float) -> bool:
    """Whether a document belongs to the held-out share (0 to 1): decided by its content, never by its position.

    So equal documents fall on the same side, and adding others moves none.
    """
    number = int.from_bytes(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())
    return number < share * 2**64
