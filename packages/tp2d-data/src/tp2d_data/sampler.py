"""The order of samples, and the position in it.

The order is a function of (number of rows, seed, epoch) and of nothing else, and the position counts samples of the
whole job. So equal global batch sizes see equal global batches whatever the number of ranks, and a run goes on with
the very next sample on another number of ranks.
"""

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tp2d_data.permutation import permute

EMPTY = -1
"""The number of a row that has no token, which fills a last batch."""
_CHUNK = 4096  # positions looked up at a time


def order(num_rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The permutation of `range(num_rows)` in which epoch `epoch` visits the rows, shape (num_rows,).

    It depends on these three and on nothing else, on every platform. A loader never builds it whole; see `permute`.
    """
    return permute(np.arange(num_rows), num_rows, key=(seed, epoch)) if num_rows else np.zeros(0, np.int64)


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """Which share of every global batch one data parallel rank takes; checks itself.

    Global batch k is samples `k * G` to `(k + 1) * G` of the order, G = batch_size_per_gpu * dp_size, and rank r takes
    `[r * batch_size_per_gpu:(r + 1) * batch_size_per_gpu]` of it.
    """

    batch_size_per_gpu: int
    dp_rank: int
    dp_size: int
    seed: int = 42
    last_batch: Literal["drop", "pad"] = "drop"

    def __post_init__(self) -> None:
        for name in ("batch_size_per_gpu", "dp_rank", "dp_size", "seed"):
            require_integer(name, getattr(self, name))
        require_at_least("batch_size_per_gpu", self.batch_size_per_gpu, 1)
        require_at_least("dp_size", self.dp_size, 1)
        if not 0 <= self.dp_rank < self.dp_size:
            raise ValueError(f"dp_rank {self.dp_rank} is outside 0 .. dp_size - 1 = {self.dp_size - 1}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed {self.seed} is outside 0 .. 2**64 - 1")
        if self.last_batch not in ("drop", "pad"):
            raise ValueError(f"last_batch must be drop or pad, not '{self.last_batch}'")

    @property
    def global_batch_size(self) -> int:
        """Rows of one batch over all data parallel ranks."""
        return self.batch_size_per_gpu * self.dp_size

    @property
    def mine(self) -> NDArray[np.int64]:
        """The samples of this rank in the first global batch, (batch_size_per_gpu,)."""
        return self.dp_rank * self.batch_size_per_gpu + np.arange(self.batch_size_per_gpu)


class Sampler:
    """Row numbers of one data parallel rank's batches; tp peers share a dp rank and so get the same.

    The last rows of an epoch that do not fill a global batch are left out of that epoch (`last_batch="drop"`; another
    epoch leaves out others), or filled up with rows numbered `EMPTY` (`"pad"`).

    Iterating starts at the beginning of the epoch, or once at the loaded position. One iterator at a time.

    Args:
        num_rows: rows there are.
        sharding: this rank's share.
        data: names the rows, so that a position is not used on others; "" to leave that out.
    """

    def __init__(self, *, num_rows: int, sharding: Sharding, data: str = "") -> None:
        self.num_rows = num_rows
        self.sharding = sharding
        self.epoch = 0
        self._data = data
        self._samples = 0  # of this epoch, over all ranks, in batches handed out so far
        self._start = 0  # where the next iteration begins

    def __len__(self) -> int:
        """Batches of a whole epoch, the same on every rank."""
        total = self.sharding.global_batch_size
        return (self.num_rows + (total - 1 if self.sharding.last_batch == "pad" else 0)) // total

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        begin = self.begin()
        return (self.hand_out(samples, numbers) for samples, numbers in self.planned(begin))

    def begin(self) -> int:
        """Where an iteration that begins now begins."""
        self._samples, self._start = self._start, 0
        return self._samples

    def planned(self, begin: int) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """This rank's batches from sample `begin` on: the samples used up after each, and its row numbers."""
        total, epoch = self.sharding.global_batch_size, self.epoch
        end = begin + (self._whole(self.num_rows - begin)) * total
        chunk = max(1, _CHUNK // self.sharding.batch_size_per_gpu) * total
        for first in range(begin, end, chunk):
            starts = np.arange(first, min(first + chunk, end), total)
            numbers = self._numbers(starts[:, None] + self.sharding.mine, epoch)
            for start, batch in zip(starts.tolist(), numbers, strict=True):
                yield min(start + total, self.num_rows), batch

    def hand_out(self, samples: int, batch: Any) -> Any:
        """`batch`, after noting that it is used up: who saves while working on it has consumed it."""
        self._samples = samples
        return batch

    def _whole(self, samples: int) -> int:
        total = self.sharding.global_batch_size
        return -(-samples // total) if self.sharding.last_batch == "pad" else samples // total

    def _numbers(self, positions: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        real = positions < self.num_rows
        rows = permute(np.where(real, positions, 0), self.num_rows, key=(self.sharding.seed, epoch))
        return np.where(real, rows, EMPTY)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch of the next iteration: another starts at its beginning, the same keeps a loaded place."""
        epoch = require_integer("epoch", epoch)
        require_at_least("epoch", epoch, 0)
        if epoch != self.epoch:
            self.epoch, self._samples, self._start = epoch, 0, 0

    def state_dict(self) -> dict[str, Any]:
        """The position, as JSON: `epoch`, and `samples`, those of this epoch handed out so far over all ranks."""
        return {"epoch": self.epoch, "samples": self._samples, "data": self._data}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Lets the next iteration begin at a position saved by any rank of a job of any dp size.

        Raises:
            ValueError: the position is not one, belongs to other data, or lies behind the last row.
        """
        if set(state) != {"epoch", "samples", "data"}:
            raise ValueError(f"a data position has the keys epoch, samples and data, this one has {sorted(state)}")
        check_data(state["data"], self._data)
        epoch, samples = (require_integer(key, state[key]) for key in ("epoch", "samples"))
        require_at_least("epoch", epoch, 0)
        if not 0 <= samples <= self.num_rows:
            raise ValueError(f"the data position {samples} is outside the epoch's {self.num_rows} rows")
        self.epoch, self._samples, self._start = epoch, samples, samples


def check_data(saved: str, present: str) -> None:
    """ValueError where a position was saved with other data or settings than the present ones."""
    if saved != present:
        raise ValueError(
            f"the data position belongs to other rows ({saved}, here {present}): the files, the tokenizer, the seed or "
            "a setting of the data has changed since; give the same ones, or begin a new run"
        )


def require_integer(name: str, value: int) -> int:
    """`value` as an int; ValueError where it is not a whole number type."""
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, not {value!r}") from None


def require_at_least(name: str, value: int, least: int) -> None:
    """ValueError where `value` is below `least`."""
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value}")
