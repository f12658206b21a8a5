"""Best fit decreasing: pieces of known lengths put into as few rows as a greedy rule finds."""

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]


def best_fit(lengths: Integers, capacity: int) -> tuple[Integers, Integers]:
    """Packs pieces of these lengths, each 1 to `capacity`, into rows: the longest first, each where it fits tightest.

    Pieces of one length are handled together, and so are rows with equal room. So numpy does the work, and Python takes
    no step per piece.

    Returns:
        The pieces' numbers row by row, (pieces,), and where each row begins in them, (rows + 1,).
    """
    by_length = np.argsort(-lengths, kind="stable")
    bounds = np.searchsorted(-lengths[by_length], np.arange(-capacity, 1), side="left")
    row_of = np.empty(len(lengths), np.int64)
    rooms = _Rooms(capacity)
    for length in range(capacity, 0, -1):
        some = by_length[bounds[capacity - length] : bounds[capacity - length + 1]]
        while len(some):
            rows, fit = rooms.take(length, len(some))
            row_of[some[: len(rows) * fit]] = np.repeat(rows, fit)[: len(some)]
            rooms.put(rows, fit * length, filled=len(some) // fit, rest=len(some) % fit * length)
            some = some[len(rows) * fit :]
    order = np.lexsort((-lengths, row_of))
    return order, np.concatenate([[0], np.cumsum(np.bincount(row_of, minlength=rooms.rows))]).astype(np.int64)


class _Rooms:
    """Rows by the room left in them."""

    def __init__(self, capacity: int) -> None:
        self.rows = 0
        self._capacity = capacity
        self._stacks: list[list[Integers]] = [[] for _ in range(capacity + 1)]
        self._counts = np.zeros(capacity + 1, np.int64)

    def take(self, length: int, pieces: int) -> tuple[Integers, int]:
        """Rows of the tightest room that holds `length`, or new ones, and how many such pieces go into each."""
        tight = np.flatnonzero(self._counts[length:])
        self._room = int(tight[0]) + length if len(tight) else self._capacity
        fit = self._room // length
        wanted = -(-pieces // fit)
        if not len(tight):
            self.rows += wanted
            return np.arange(self.rows - wanted, self.rows), fit
        stack = np.concatenate(self._stacks[self._room])
        self._stacks[self._room] = [stack[wanted:]]
        taken = stack[:wanted]
        self._counts[self._room] -= len(taken)
        return taken, fit

    def put(self, rows: Integers, used: int, *, filled: int, rest: int) -> None:
        """Gives rows back with less room: `used` less in the first `filled` of them, `rest` less in the next one."""
        self._add(rows[:filled], self._room - used)
        if filled < len(rows):
            self._add(rows[filled:], self._room - rest)

    def _add(self, rows: Integers, room: int) -> None:
        if len(rows) and room:
            self._stacks[room].append(rows)
            self._counts[room] += len(rows)
