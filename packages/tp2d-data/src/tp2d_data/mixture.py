"""Several sources in one order, with weights.

An epoch has as many rows as the sources have together; the weights say whose they are. A source goes through all its
rows in a shuffled order before it shows one again, and goes on in the next epoch where it stopped in this one. Without
weights every source is seen once per epoch.
"""

from collections.abc import Sequence

import numpy as np

from tp2d_data.collate import Picks
from tp2d_data.packing import Integers
from tp2d_data.permutation import permute
from tp2d_data.rows import Rows
from tp2d_data.sampler import EMPTY


class Mixture:
    """Which row of which source a row number of an epoch means.

    Args:
        parts: the sources' rows.
        weights: one for each, above 0; None: as many as each has rows.
        seed: of the order in which a source shows its rows.
    """

    def __init__(self, parts: Sequence[Rows], *, weights: Sequence[float] | None, seed: int) -> None:
        self.parts = parts
        self._seed = seed
        self._sizes = np.array([len(part) for part in parts])
        self._shares = self._sizes if weights is None else shares(weights, int(self._sizes.sum()))
        self._bounds = np.concatenate([[0], np.cumsum(self._shares)])

    def __len__(self) -> int:
        return int(self._bounds[-1])

    def pick(self, numbers: Integers, epoch: int) -> Picks:
        """The rows that `numbers`, (batch,), mean in an epoch; `EMPTY` stays."""
        part = np.searchsorted(self._bounds, np.maximum(numbers, 0), side="right") - 1
        number = np.where(numbers == EMPTY, EMPTY, numbers - self._bounds[part])
        for i in np.unique(part).tolist():
            if self._shares[i] != self._sizes[i]:
                chosen = (part == i) & (numbers != EMPTY)
                number[chosen] = self._turn(i, number[chosen] + epoch * self._shares[i])
        return Picks(parts=self.parts, part=part, number=number)

    def _turn(self, part: int, turns: Integers) -> Integers:
        """The rows a source shows at its `turns`, counted over all epochs."""
        size = int(self._sizes[part])
        rounds, positions = np.divmod(turns, size)
        rows = np.empty_like(turns)
        for number in np.unique(rounds).tolist():
            here = rounds == number
            rows[here] = permute(positions[here], size, key=(self._seed, number), stream=part + 1)
        return rows


def shares(weights: Sequence[float], total: int) -> Integers:
    """`total` divided in proportion to `weights`, in whole numbers that add up to it (largest remainder)."""
    exact = np.array(weights, dtype=np.float64) / np.sum(weights) * total
    whole = np.floor(exact).astype(np.int64)
    largest = np.argsort(-(exact - whole), kind="stable")[: total - int(whole.sum())]
    whole[largest] += 1
    return whole
