"""Rows of corpora larger than the disk: tokenised block by block; a few blocks are kept, the next one is made ahead.

A source's documents are cut into blocks of `block_tokens` tokens, in their order. A block is tokenised and packed once
per machine, as a whole corpus is elsewhere. Its rows are shuffled among themselves, never with those of another block.
With several sources the weights decide, sample by sample, which source gives the next row.

The order is a function of (seed, epoch, settings). The position says how many samples were handed out and, for each
source, which block is open and how many of its rows are used. So it is found again without reading what is before it.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

import numpy as np

from tp2d_data.rows.collate import EMPTY, Picks
from tp2d_data.rows.packing import Integers, Packing
from tp2d_data.rows.rows import Rows, TooFewRows, folder_of_rows, open_rows
from tp2d_data.sampling.permutation import fractions, permute
from tp2d_data.sampling.sharding import Sharding
from tp2d_data.storage import Damaged, withdraw
from tp2d_data.tokens.cache import Tokeniser
from tp2d_data.values import require_at_least, require_integer

_KEPT_BLOCKS = 3


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Reads corpora block by block while training; checks itself.

    Args:
        block_tokens: tokens of a block, 2 or 4 bytes each on disk.
    """

    block_tokens: int = 1 << 24

    def __post_init__(self) -> None:
        require_at_least("block_tokens", require_integer("block_tokens", self.block_tokens), 1)


@dataclass(frozen=True, kw_only=True)
class Cursor:
    """The place in one source: finished rounds, the open block's first record, and the rows of that block used up."""

    rounds: int = 0
    document: int = 0
    row: int = 0


@dataclass(frozen=True, kw_only=True)
class Position:
    """A place in a stream: samples handed out over all ranks, and every source's cursor."""

    samples: int
    cursors: tuple[Cursor, ...]


class SourceStream:
    """The rows of one source, block after block; after the last block it begins again.

    Args:
        tokeniser: makes the blocks.
        packing: how rows are filled.
        stream: how large a block is.
        number: of this source; with the seed, the epoch and the block it decides the order in a block.
    """

    def __init__(self, tokeniser: Tokeniser, *, packing: Packing, stream: Stream, number: int) -> None:
        self._tokeniser = tokeniser
        self._packing = packing
        self._block_tokens = stream.block_tokens
        self._number = number
        self._blocks: dict[int, Future[Rows]] = {}
        self._used: deque[int] = deque()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="tp2d-data-block")

    def take(self, cursor: Cursor, count: int, *, key: tuple[int, int]) -> tuple[list[tuple[Rows, Integers]], Cursor]:
        """The next `count` rows from `cursor` on, by block, and the cursor after them; fewer at the end of a round."""
        taken: list[tuple[Rows, Integers]] = []
        begin = cursor
        while count:
            block = self._block(cursor.document)
            some = np.arange(cursor.row, min(len(block), cursor.row + count))
            if len(some):
                stream = (cursor.rounds << 40) + (self._number << 32) + cursor.document % (1 << 32)
                taken.append((block, permute(some, len(block), key=key, stream=stream)))
            count -= len(some)
            cursor = self._after(cursor, block, len(some))
            if cursor == Cursor(rounds=cursor.rounds):
                break
        if not taken and begin == Cursor(rounds=begin.rounds):
            raise TooFewRows(f"dataset {self._tokeniser.documents.source.name} gives no row")
        return taken, cursor

    def _after(self, cursor: Cursor, block: Rows, used: int) -> Cursor:
        row, following = cursor.row + used, block.tokens.following
        if row < len(block):
            return Cursor(rounds=cursor.rounds, document=cursor.document, row=row)
        if following is None:
            return Cursor(rounds=cursor.rounds + 1)
        return Cursor(rounds=cursor.rounds, document=following)

    def _block(self, document: int) -> Rows:
        """The block that begins with record `document`; the one after it is started."""
        rows = self._start(document).result()
        self._start(rows.tokens.following or 0)
        self._forget(document)
        return rows

    def _start(self, document: int) -> Future[Rows]:
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
                    raise  # without the folder, another job on the same data, which is ahead, has just removed it

    def _forget(self, document: int) -> None:
        """Removes blocks that were used up some time ago; a slower rank still has them mapped in memory."""
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


class Streams:
    """The plan of sources that are read block by block: which row of which block is in which batch.

    An epoch of one source ends with its last row. One of several sources ends when each was gone through at least once.

    Args:
        sources: at least one.
        weights: one for each source, above 0: its share of the samples.
        sharding: this rank's share, and the seed of the order.
    """

    def __init__(self, sources: Sequence[SourceStream], *, weights: Sequence[float], sharding: Sharding) -> None:
        self._sources = sources
        self._bounds = np.cumsum(weights) / np.sum(weights)
        self._sharding = sharding

    def __len__(self) -> NoReturn:
        raise TypeError("a stream has no length: nobody has counted its rows")

    def beginning(self) -> Position:
        return Position(samples=0, cursors=(Cursor(),) * len(self._sources))

    def to_json(self, place: Position) -> dict[str, Any]:
        return {"samples": place.samples, "cursors": [asdict(cursor) for cursor in place.cursors]}

    def from_json(self, saved: Mapping[str, Any]) -> Position:
        cursors = tuple(Cursor(**cursor) for cursor in saved["cursors"])
        return Position(samples=require_integer("samples", saved["samples"]), cursors=cursors)

    def batches(self, begin: Position, epoch: int) -> Iterator[tuple[Position, Picks]]:
        place, total = begin, self._sharding.global_batch_size
        while not all(cursor.rounds for cursor in place.cursors):
            parts, samples, place = self._global_batch(place, epoch)
            if len(samples) == total or (samples and self._sharding.last_batch == "pad"):
                yield place, self._share(parts, samples)

    def _global_batch(self, place: Position, epoch: int) -> tuple[list[Rows], list[tuple[int, int]], Position]:
        """The blocks' rows, (block, row number) of every sample, and the place after them."""
        key = (self._sharding.seed, epoch)
        source_of = self._sources_of(place.samples + np.arange(self._sharding.global_batch_size), key=key)
        parts: list[Rows] = []
        cursors = list(place.cursors)
        queues: list[deque[tuple[int, int]]] = [deque() for _ in self._sources]
        for i, source in enumerate(self._sources):
            wanted = int((source_of == i).sum())
            while len(queues[i]) < wanted:
                taken, cursors[i] = source.take(cursors[i], wanted - len(queues[i]), key=key)
                for rows, numbers in taken:
                    parts.append(rows)
                    queues[i].extend((len(parts) - 1, number) for number in numbers.tolist())
                if len(self._sources) == 1 and cursors[i].rounds:
                    break
        samples = [queues[i].popleft() for i in source_of.tolist() if queues[i]]
        return parts, samples, Position(samples=place.samples + len(samples), cursors=tuple(cursors))

    def _sources_of(self, samples: Integers, *, key: tuple[int, int]) -> Integers:
        """The number of the source that gives each of `samples`."""
        if len(self._sources) == 1:
            return np.zeros_like(samples)
        drawn = fractions(samples, key=key)
        return np.minimum(np.searchsorted(self._bounds, drawn, side="right"), len(self._sources) - 1)

    def _share(self, parts: list[Rows], samples: list[tuple[int, int]]) -> Picks:
        """This rank's rows of a global batch, filled up with empty ones."""
        padded = samples + [(0, EMPTY)] * (self._sharding.global_batch_size - len(samples))
        part, number = np.array(padded)[self._sharding.mine].T
        return Picks(parts=parts, part=part, number=number)
