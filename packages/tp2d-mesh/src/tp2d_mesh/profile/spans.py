"""Arithmetic of intervals, `(start, stop)` in any unit of time. Every list that is returned is sorted and disjoint."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

Span = tuple[float, float]
Key = TypeVar("Key")


def union(spans: Iterable[Span]) -> list[Span]:
    """The instants in at least one of `spans`, which may overlap and have any order; empty ones are left out."""
    found: list[Span] = []
    for start, stop in sorted(span for span in spans if span[0] < span[1]):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(stop, found[-1][1]))
        else:
            found.append((start, stop))
    return found


def overlap(first: Sequence[Span], second: Sequence[Span]) -> list[Span]:
    """The instants in both; each argument is sorted and disjoint."""
    found: list[Span] = []
    i = j = 0
    while i < len(first) and j < len(second):
        start, stop = max(first[i][0], second[j][0]), min(first[i][1], second[j][1])
        if start < stop:
            found.append((start, stop))
        if first[i][1] < second[j][1]:
            i += 1
        else:
            j += 1
    return found


def without(first: Sequence[Span], second: Sequence[Span]) -> list[Span]:
    """The instants in `first` and not in `second`; each argument is sorted and disjoint."""
    if not second:
        return list(first)
    edges = [float("-inf"), *(edge for span in second for edge in span), float("inf")]
    return overlap(first, list(zip(edges[::2], edges[1::2], strict=True)))


def length(spans: Iterable[Span]) -> float:
    """How long disjoint spans are together."""
    return sum(stop - start for start, stop in spans)


def divided(
    whole: Sequence[Span], layers: Iterable[tuple[Key, Iterable[Span]]]
) -> tuple[Mapping[Key, list[Span]], list[Span]]:
    """Gives each instant of `whole` to the first layer that covers it, so that no instant counts twice or is lost.

    Args:
        whole: sorted and disjoint.
        layers: a key and its spans, the layer that wins first. A key may have several layers.

    Returns:
        The spans of each key, and those that no layer covers. Their lengths add up to that of `whole`.
    """
    shares: dict[Key, list[Span]] = {}
    left = list(whole)
    for key, spans in layers:
        cover = union(spans)
        shares[key] = union([*shares.get(key, []), *overlap(left, cover)])
        left = without(left, cover)
    return shares, left
