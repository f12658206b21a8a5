"""One tp rank makes the batches of its dp rank, its peers get them from it, and all ranks end together."""

import logging
from collections import deque
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from tp2d_data.collate import Batch
from tp2d_data.records import Record
from tp2d_data.sampler import Sharding, check_data, require_at_least, require_integer
from tp2d_data.windows import Windows, batches

logger = logging.getLogger(__name__)


class Share:
    """The batches of one dp rank, made in a thread, ahead of who asks for them.

    Args:
        windows: makes rows of records; a fresh one.
        records: those of this dp rank, of one epoch.
        sharding: this rank's.
        epoch: it decides the rows' order, with the seed.
        skip: rows to leave out at the beginning.
        pad_token_id: of the rows' ends.
        prefetch: batches made ahead.
    """

    def __init__(
        self,
        windows: Windows,
        records: Iterable[Record],
        *,
        sharding: Sharding,
        epoch: int,
        skip: int,
        pad_token_id: int,
        prefetch: int,
    ) -> None:
        self._windows, self._who = windows, f"epoch {epoch}, dp rank {sharding.dp_rank}"
        self._places = windows.places(records, key=(sharding.seed, epoch), share=sharding.dp_rank)
        self._batches = batches(
            islice(self._places, skip, None),
            sharding.batch_size_per_gpu,
            packing=windows.packing,
            pad_token_id=pad_token_id,
            fill=sharding.last_batch == "pad",
        )
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="tp2d-data-share")
        self._pending: deque[Future[Batch | None]] = deque()
        self._prefetch = prefetch

    def next(self) -> Batch | None:
        """The next batch, None behind the last one."""
        while len(self._pending) <= self._prefetch:
            self._pending.append(self._pool.submit(next, self._batches, None))
        return self._pending.popleft().result()

    def rest(self, handed_out: int) -> int:
        """Reads on to the end; how many rows there are besides so many that were handed out."""
        self._stop()
        for _ in self._places:
            pass
        left = max(0, self._windows.rows - handed_out)
        counts = f"{self._windows.read:,} documents, {self._windows.rows:,} rows, {left:,} of them left out"
        dropped = "".join(f", {count:,} documents {why}" for why, count in sorted(self._windows.dropped.items()))
        logger.info("%s: %s%s", self._who, counts, dropped)
        return left

    def close(self) -> None:
        """Stops reading, wherever it is."""
        self._stop()
        self._places.close()

    def _stop(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


class Wire:
    """What the ranks tell each other about batches: a message is the word whether one comes, and the batch.

    Args:
        tp_group: its rank 0 leads.
        dp_group: the leaders, on the ranks that lead.
        names: of a batch's arrays.
        shape: of each.
        drop: whether all end when one leader has no batch; else they end when none has.
    """

    def __init__(
        self,
        *,
        tp_group: dist.ProcessGroup,
        dp_group: dist.ProcessGroup,
        names: tuple[str, ...],
        shape: tuple[int, int],
        drop: bool,
    ) -> None:
        self._tp_group, self._dp_group, self._names, self._shape = tp_group, dp_group, names, shape
        self._decision = dist.ReduceOp.MIN if drop else dist.ReduceOp.MAX

    def lead(self, batch: Batch | None, *, empty: Batch) -> Batch | None:
        """A leader's turn: `batch`, None where all end now, or `empty` where only this one has none."""
        goes_on = torch.tensor([batch is not None], dtype=torch.int64)
        dist.all_reduce(goes_on, op=self._decision, group=self._dp_group)
        sent = (batch or empty) if goes_on else None
        message = self._message()
        message[0] = goes_on[0]
        if sent is not None:
            message[1:] = torch.from_numpy(np.concatenate([sent[name].ravel() for name in self._names]))
        self._broadcast(message)
        return sent

    def follow(self) -> Batch | None:
        """A peer's turn: its leader's batch, None where all end now."""
        message = self._message()
        self._broadcast(message)
        if not message[0]:
            return None
        arrays = message[1:].numpy().reshape(len(self._names), *self._shape)
        return dict(zip(self._names, arrays, strict=True))

    def sum(self, count: int | None) -> int:
        """The sum of all leaders' counts, on every rank; a peer gives None."""
        total = torch.tensor([count or 0], dtype=torch.int64)
        if count is not None:
            dist.all_reduce(total, group=self._dp_group)
        self._broadcast(total)
        return int(total)

    def _message(self) -> torch.Tensor:
        rows, columns = self._shape
        return torch.empty(1 + len(self._names) * rows * columns, dtype=torch.int64)

    def _broadcast(self, message: torch.Tensor) -> None:
        dist.broadcast(message, src=dist.get_global_rank(self._tp_group, 0), group=self._tp_group)


class RelaySampler:
    """The epoch, and the samples of it handed out over all ranks; what `Sampler` is for corpora of known size.

    Args:
        sharding: this rank's.
        data: names the settings that the rows depend on.
    """

    def __init__(self, sharding: Sharding, *, data: str) -> None:
        self.sharding = sharding
        self.epoch = 0
        self._data = data
        self._samples = self._start = 0

    def begin(self) -> int:
        """Where an iteration that begins now begins."""
        self._samples, self._start = self._start, 0
        return self._samples

    def hand_out(self, samples: int, batch: Any) -> Any:
        """`batch`, after noting that it is used up."""
        self._samples = samples
        return batch

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch of the next iteration: another starts at its beginning, the same keeps a loaded place."""
        require_at_least("epoch", require_integer("epoch", epoch), 0)
        if epoch != self.epoch:
            self.epoch, self._samples, self._start = epoch, 0, 0

    def state_dict(self) -> dict[str, Any]:
        """The position, as JSON."""
        return {"epoch": self.epoch, "samples": self._samples, "dp_size": self.sharding.dp_size, "data": self._data}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Lets the next iteration begin at a position.

        Raises:
            ValueError: it is none, or one of another dp size or other settings.
        """
        if set(state) != {"epoch", "samples", "dp_size", "data"}:
            raise ValueError(f"a position has the keys epoch, samples, dp_size and data, this one has {sorted(state)}")
        if state["dp_size"] != self.sharding.dp_size:
            raise ValueError(
                f"the data position is of dp_size {state['dp_size']} and here it is {self.sharding.dp_size}, for which "
                "Ray Data splits the dataset otherwise; keep dp_size, or use create_dataloader, which resumes on any"
            )
        check_data(state["data"], self._data)
        epoch, samples = (require_integer(key, state[key]) for key in ("epoch", "samples"))
        require_at_least("samples", samples, 0)
        self.epoch, self._samples, self._start = epoch, samples, samples
