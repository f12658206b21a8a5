"""The rows of sources of known size in one shuffled order, with weights.

An epoch has as many rows as the sources have together. Weights say how they are divided among the sources; without
weights every row comes once per epoch. A source goes through all its rows in a shuffled order before it repeats one,
and continues in the next epoch where it stopped in this one.

The order is a function of (number of rows, seed, epoch) and of nothing else. So equal global batch sizes give equal
global batches whatever the number of ranks.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tp2d_data.rows.collate import EMPTY, Picks
from tp2d_data.rows.packing import Integers
from tp2d_data.rows.rows import Rows
from tp2d_data.sampling.permutation import permute
from tp2d_data.sampling.sharding import Sharding
from tp2d_data.values import require_integer

_CHUNK = 4096  # positions looked up at a time


class Mixture:
    """The plan of sources of known size: which row of which source is in which batch. A place is a number of samples.

    The last rows of an epoch that do not fill a global batch are left out of that epoch (`last_batch="drop"`; another
    epoch leaves out others), or filled up with rows numbered `EMPTY` (`"pad"`).

    Args:
        parts: the sources' rows; here only how many each has matters.
        weights: one for each source, above 0; None: every row once per epoch.
        sharding: this rank's share, and the seed of the order.
    """

    def __init__(self, parts: Sequence[Rows], *, weights: Sequence[float] | None = None, sharding: Sharding) -> None:
        self._parts = parts
        self._sharding = sharding
        self._sizes = np.array([len(part) for part in parts])
        self.num_rows = int(self._sizes.sum())
        self._shares = self._sizes if weights is None else shares(weights, self.num_rows)
        self._bounds = np.concatenate([[0], np.cumsum(self._shares)])

    def __len__(self) -> int:
        return self._whole_batches(self.num_rows)

    def beginning(self) -> int:
        return 0

    def to_json(self, place: int) -> dict[str, Any]:
        return {"samples": place}

    def from_json(self, saved: Mapping[str, Any]) -> int:
        samples = require_integer("samples", saved["samples"])
        if not 0 <= samples <= self.num_rows:
            raise ValueError(f"the data position {samples} is outside the epoch's {self.num_rows} rows")
        return samples

    def batches(self, begin: int, epoch: int) -> Iterator[tuple[int, Picks]]:
        total = self._sharding.global_batch_size
        end = begin + self._whole_batches(self.num_rows - begin) * total
        chunk = max(1, _CHUNK // self._sharding.batch_size_per_gpu) * total
        for first in range(begin, end, chunk):
            starts = np.arange(first, min(first + chunk, end), total)
            numbers = self._numbers(starts[:, None] + self._sharding.mine, epoch)
            for start, batch in zip(starts.tolist(), numbers, strict=True):
                yield min(start + total, self.num_rows), self.pick(batch, epoch)

    def pick(self, numbers: Integers, epoch: int) -> Picks:
        """The rows that `numbers`, (batch,), mean in an epoch; `EMPTY` stays."""
        part = np.searchsorted(self._bounds, np.maximum(numbers, 0), side="right") - 1
        number = np.where(numbers == EMPTY, EMPTY, numbers - self._bounds[part])
        for i in np.unique(part).tolist():
            if self._shares[i] != self._sizes[i]:
                chosen = (part == i) & (numbers != EMPTY)
                number[chosen] = self._turn(i, number[chosen] + epoch * self._shares[i])
        return Picks(parts=self._parts, part=part, number=number)

    def _whole_batches(self, samples: int) -> int:
        total = self._sharding.global_batch_size
        return -(-samples // total) if self._sharding.last_batch == "pad" else samples // total

    def _numbers(self, positions: Integers, epoch: int) -> Integers:
        """The row numbers at `positions` of the epoch's order; `EMPTY` after the last one."""
        real = positions < self.num_rows
        rows = permute(np.where(real, positions, 0), self.num_rows, key=(self._sharding.seed, epoch))
        return np.where(real, rows, EMPTY)

    def _turn(self, part: int, turns: Integers) -> Integers:
        """The rows a source gives at its `turns`, counted over all epochs."""
        size = int(self._sizes[part])
        rounds, positions = np.divmod(turns, size)
        rows = np.empty_like(turns)
        for number in np.unique(rounds).tolist():
            here = rounds == number
            rows[here] = permute(positions[here], size, key=(self._sharding.seed, number), stream=part + 1)
        return rows


def shares(weights: Sequence[float], total: int) -> Integers:
    """`total` divided in proportion to `weights`, in whole numbers that add up to it (largest remainder)."""
    exact = np.array(weights, dtype=np.float64) / np.sum(weights) * total
    whole = np.floor(exact).astype(np.int64)
    largest = np.argsort(-(exact - whole), kind="stable")[: total - int(whole.sum())]
    whole[largest] += 1
    return whole
