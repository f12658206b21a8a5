"""Which share of every global batch one data parallel rank takes."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from tp2d_data.values import require_at_least, require_integer

LastBatch = Literal["drop", "pad"]


@dataclass(frozen=True, kw_only=True)
class Sharding:
    """This rank's share of every global batch; checks itself.

    Global batch k is samples `k * G` to `(k + 1) * G` of the order, G = batch_size_per_gpu * dp_size. Rank r takes
    `[r * batch_size_per_gpu:(r + 1) * batch_size_per_gpu]` of it.

    Args:
        batch_size_per_gpu: rows of this rank's batch.
        dp_rank: this rank among the data parallel ranks; tensor parallel peers share it.
        dp_size: data parallel ranks.
        seed: with the epoch it decides the order of samples.
        last_batch: what happens to rows that do not fill a global batch: `drop` leaves them out of this epoch, `pad`
            fills the batch up with empty rows, which have no label.

    Raises:
        ValueError: a value out of range.
    """

    batch_size_per_gpu: int
    dp_rank: int
    dp_size: int
    seed: int = 42
    last_batch: LastBatch = "drop"

    def __post_init__(self) -> None:
        for name in ("batch_size_per_gpu", "dp_rank", "dp_size", "seed"):
            require_integer(name, getattr(self, name))
        require_at_least("batch_size_per_gpu", self.batch_size_per_gpu, 1)
        require_at_least("dp_size", self.dp_size, 1)
        if not 0 <= self.dp_rank < self.dp_size:
            raise ValueError(f"dp_rank {self.dp_rank} is outside 0 .. dp_size - 1 = {self.dp_size - 1}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed {self.seed} is outside 0 .. 2**64 - 1")
        if self.last_batch not in get_args(LastBatch):
            raise ValueError(f"last_batch must be drop or pad, not '{self.last_batch}'")

    @property
    def global_batch_size(self) -> int:
        """Rows of one batch over all data parallel ranks."""
        return self.batch_size_per_gpu * self.dp_size

    @property
    def mine(self) -> NDArray[np.int64]:
        """The samples of this rank in the first global batch, (batch_size_per_gpu,)."""
        return self.dp_rank * self.batch_size_per_gpu + np.arange(self.batch_size_per_gpu)
