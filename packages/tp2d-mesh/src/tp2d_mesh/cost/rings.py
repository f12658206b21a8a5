"""The bytes that one rank sends for a collective, and the seconds a link takes for them.

Collectives are counted as ring algorithms send them, which is the least unless the network itself reduces. `size` is
the whole tensor's, in bytes; `ranks` is the size of the group. A result is the bytes that one rank sends, and it
receives as many. Latency, and overlap with compute, are not counted.
"""


def all_reduce_bytes(size: float, *, ranks: int) -> float:
    """Bytes a rank sends to sum a tensor of `size` bytes over `ranks`: `2 (n - 1) / n * size`."""
    return reduce_scatter_bytes(size, ranks=ranks) + all_gather_bytes(size, ranks=ranks)


def reduce_scatter_bytes(size: float, *, ranks: int) -> float:
    """Bytes a rank sends to sum a tensor of `size` bytes and keep 1/n of the sum: `(n - 1) / n * size`."""
    return _ring(size, ranks)


def all_gather_bytes(size: float, *, ranks: int) -> float:
    """Bytes a rank sends to assemble a tensor of `size` bytes from its n shards: `(n - 1) / n * size`."""
    return _ring(size, ranks)


def transfer_seconds(sent_bytes: float, *, bytes_per_second: float) -> float:
    """Seconds in which a link of `bytes_per_second` in each direction carries `sent_bytes`.

    Raises:
        ValueError: the bandwidth is not positive.
    """
    if not bytes_per_second > 0:
        raise ValueError(f"bytes_per_second={bytes_per_second} is not a bandwidth: give a positive number.")
    return sent_bytes / bytes_per_second


def _ring(size: float, ranks: int) -> float:
    if ranks < 1 or size < 0:
        raise ValueError(f"size={size} bytes over ranks={ranks}: give a size of at least 0 and at least 1 rank.")
    return (ranks - 1) / ranks * size
