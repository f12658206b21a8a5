"""Rows of corpora that no disk holds: tokenised block by block, a few blocks kept, the next one made ahead.

A source's documents are cut into blocks of `block_tokens` tokens, in their order. A block is tokenised and packed once
per machine, as a whole corpus is elsewhere, and its rows are shuffled: the block is the bound of the shuffle. With
several sources the weights say, sample by sample, whose row is next.

The order is a function of (seed, epoch, settings). The position says how many samples were handed out and, for each
source, which block is open and how many of its rows are used, so that it is found again without reading what is before.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tp2d_data.cache import Tokeniser
from tp2d_data.collate import Picks
from tp2d_data.packing import Integers, Packing
from tp2d_data.permutation import fractions, permute
from tp2d_data.rows import Rows, TooFewRows, folder_of_rows, open_rows
from tp2d_data.sampler import EMPTY, Sharding, check_data, require_at_least, require_integer
from tp2d_data.storage import Damaged, withdraw

BLOCK_TOKENS = 1 << 24
"""Tokens of a block: 32 to 64 MB on disk."""
_KEPT_BLOCKS = 3


@dataclass(frozen=True, kw_only=True)
class Cursor:
    """Where a source is: how often it was gone through, the open block's first record, and the rows of it used up."""

    rounds: int = 0
    document: int = 0
    row: int = 0


@dataclass(frozen=True, kw_only=True)
class Position:
    """A place in a stream: samples handed out over all ranks, and every source's cursor."""

    samples: int
    cursors: tuple[Cursor, ...]


class SourceStream:
    """The rows of one source, block after block; when the last one is used up it begins again.

    Args:
        tokeniser: makes the blocks.
        packing: fills the rows of a block.
        block_tokens: tokens of a block.
        number: of the source; with the seed, the epoch and the block it decides the order in a block.
    """

    def __init__(self, tokeniser: Tokeniser, packing: Packing, *, block_tokens: int, number: int) -> None:
        self._tokeniser = tokeniser
        self._packing = packing
        self._block_tokens = block_tokens
        self._number = number
        self._blocks: dict[int, Future[Rows]] = {}
        self._used: deque[int] = deque()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="tp2d-data-block")

    def take(self, cursor: Cursor, count: int, *, key: tuple[int, int]) -> tuple[list[tuple[Rows, Integers]], Cursor]:
        """The next `count` rows from `cursor` on, by block, and where that leads; fewer at the end of a round."""
        taken: list[tuple[Rows, Integers]] = []
        begin = cursor
        while count:
            block = self._block(cursor.document)
            some = np.arange(cursor.row, min(len(block), cursor.row + count))
            if len(some):
                stream = (cursor.rounds << 40) + (self._number << 32) + cursor.document % (1 << 32)
                taken.append((block, permute(some, len(block), key=key, stream=stream)))
            count -= len(some)
            cursor = self._behind(cursor, block, len(some))
            if cursor == Cursor(rounds=cursor.rounds):
                break
        if not taken and begin == Cursor(rounds=begin.rounds):
            raise TooFewRows(f"dataset {self._tokeniser.documents.source.name} gives no row")
        return taken, cursor

    def _behind(self, cursor: Cursor, block: Rows, used: int) -> Cursor:
        row, following = cursor.row + used, block.tokens.following
        if row < len(block):
            return Cursor(rounds=cursor.rounds, document=cursor.document, row=row)
        if following is None:
            return Cursor(rounds=cursor.rounds + 1)
        return Cursor(rounds=cursor.rounds, document=following)

    def _block(self, document: int) -> Rows:
        """The block that begins with `document`; the one after it is begun."""
        rows = self._begin(document).result()
        self._begin(rows.tokens.following or 0)
        self._forget(document)
        return rows

    def _begin(self, document: int) -> Future[Rows]:
        if document not in self._blocks:
            self._blocks[document] = self._pool.submit(self._open, document)
        return self._blocks[document]

    def _open(self, document: int) -> Rows:
        while True:
            try:
                tokens = self._tokeniser.block(document, self._block_tokens)
                return open_rows(tokens, self._packing, cache_dir=self._tokeniser.cache_dir)
            except Damaged as error:
                if error.folder.exists():
                    raise  # else another job over the same data, which is ahead, withdrew it meanwhile

    def _forget(self, document: int) -> None:
        """Removes blocks that were used up some time ago; a rank that is behind still has them mapped."""
        if document in self._used:
            return
        self._used.append(document)
        if len(self._used) > _KEPT_BLOCKS:
            old = self._used.popleft()
            key = self._blocks.pop(old).result().tokens.key
            folders = [
                self._tokeniser.folder_of_block(old, self._block_tokens),
                folder_of_rows(key, self._packing, self._tokeniser.cache_dir),
            ]
            for folder in folders:
                withdraw(folder)


class StreamSampler:
    """The rows of one data parallel rank's batches, of streams; what `Sampler` is for corpora of known size.

    An epoch of one source ends with its last row, one of several when each was gone through at least once.

    Args:
        sources: at least one.
        weights: one for each source, above 0: its share of the samples.
        sharding: this rank's share.
        data: names the data and settings, so that a position is not used on others.
    """

    def __init__(
        self, sources: Sequence[SourceStream], *, weights: Sequence[float], sharding: Sharding, data: str
    ) -> None:
        self._sources = sources
        self._bounds = np.cumsum(weights) / np.sum(weights)
        self.sharding = sharding
        self.epoch = 0
        self._data = data
        self._position = self._start = self._beginning

    @property
    def _beginning(self) -> Position:
        return Position(samples=0, cursors=(Cursor(),) * len(self._sources))

    def begin(self) -> Position:
        """Where an iteration that begins now begins."""
        self._position, self._start = self._start, self._beginning
        return self._position

    def planned(self, begin: Position) -> Iterator[tuple[Position, Picks]]:
        """This rank's batches from `begin` on: the position after each, and its rows."""
        position, epoch, total = begin, self.epoch, self.sharding.global_batch_size
        while not self._ended(position):
            parts, numbers, position = self._global_batch(position, epoch)
            if len(numbers) == total or (len(numbers) and self.sharding.last_batch == "pad"):
                yield position, self._share(parts, numbers)

    def hand_out(self, position: Position, batch: Any) -> Any:
        """`batch`, after noting that it is used up."""
        self._position = position
        return batch

    def _ended(self, position: Position) -> bool:
        return all(cursor.rounds for cursor in position.cursors)

    def _global_batch(self, position: Position, epoch: int) -> tuple[list[Rows], list[tuple[int, int]], Position]:
        """The parts there are, (part, number) of every sample, and where that leads."""
        total = self.sharding.global_batch_size
        whose = self._whose(position.samples + np.arange(total), epoch)
        parts: list[Rows] = []
        cursors = list(position.cursors)
        queues: list[deque[tuple[int, int]]] = [deque() for _ in self._sources]
        for i, source in enumerate(self._sources):
            wanted = int((whose == i).sum())
            while len(queues[i]) < wanted:
                taken, cursors[i] = source.take(cursors[i], wanted - len(queues[i]), key=(self.sharding.seed, epoch))
                for rows, numbers in taken:
                    parts.append(rows)
                    queues[i].extend((len(parts) - 1, number) for number in numbers.tolist())
                if len(self._sources) == 1 and cursors[i].rounds:
                    break
        samples = [queues[i].popleft() for i in whose.tolist() if queues[i]]
        return parts, samples, Position(samples=position.samples + len(samples), cursors=tuple(cursors))

    def _whose(self, samples: Integers, epoch: int) -> Integers:
        if len(self._sources) == 1:
            return np.zeros_like(samples)
        drawn = fractions(samples, key=(self.sharding.seed, epoch))
        return np.minimum(np.searchsorted(self._bounds, drawn, side="right"), len(self._sources) - 1)

    def _share(self, parts: list[Rows], samples: list[tuple[int, int]]) -> Picks:
        padded = samples + [(0, EMPTY)] * (self.sharding.global_batch_size - len(samples))
        part, number = np.array(padded)[self.sharding.mine].T
        return Picks(parts=parts, part=part, number=number)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch of the next iteration: another starts at its beginning, the same keeps a loaded place."""
        require_at_least("epoch", require_integer("epoch", epoch), 0)
        if epoch != self.epoch:
            self.epoch, self._position, self._start = epoch, self._beginning, self._beginning

    def state_dict(self) -> dict[str, Any]:
        """The position, as JSON."""
        cursors = [asdict(cursor) for cursor in self._position.cursors]
        return {"epoch": self.epoch, "data": self._data, "samples": self._position.samples, "cursors": cursors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Lets the next iteration begin at a position saved by any rank of a job of any dp size.

        Raises:
            ValueError: the position is not one, or belongs to other data.
        """
        if set(state) != {"epoch", "data", "samples", "cursors"}:
            raise ValueError(
                f"a stream's position has the keys epoch, data, samples and cursors, this one has {sorted(state)}"
            )
        check_data(state["data"], self._data)
        cursors = tuple(Cursor(**cursor) for cursor in state["cursors"])
        self.epoch = require_integer("epoch", state["epoch"])
        self._position = self._start = Position(samples=require_integer("samples", state["samples"]), cursors=cursors)
