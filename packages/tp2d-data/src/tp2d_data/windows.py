"""Rows of documents that arrive one after the other: tokenised and packed window by window, in memory.

A window holds the documents that come until it has so many tokens; its rows are shuffled, so it is also the bound of
the shuffle. What is packed together ends with the window: its last rows are less full than others, and `concat` cuts
there. Memory: 5 bytes a token, of a window that is used up and the next one that is filled.
"""

from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from tp2d_data.cache import Tokens
from tp2d_data.collate import Batch, Picks, collate
from tp2d_data.examples import Joined, Task, tokenise
from tp2d_data.packing import Packing
from tp2d_data.permutation import permute
from tp2d_data.records import Record
from tp2d_data.rows import Rows, open_rows
from tp2d_data.sampler import EMPTY

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WINDOW_TOKENS = 1 << 22
_RECORDS = 256  # tokenised together
Place = tuple[Rows, int]  # the rows of a window, and the number of one of them


@dataclass(kw_only=True)
class Windows:
    """Makes rows of records, and counts.

    Args:
        tokenizer, task, append_eos: how records become tokens.
        packing: how tokens become rows.
        window_tokens: of a window.
    """

    tokenizer: "PreTrainedTokenizerBase"
    task: Task
    append_eos: bool
    packing: Packing
    window_tokens: int = WINDOW_TOKENS
    read: int = field(default=0, init=False)  # records
    rows: int = field(default=0, init=False)  # rows given out
    dropped: Counter[str] = field(default_factory=Counter, init=False)  # reason -> records left out

    def places(self, records: Iterable[Record], *, key: tuple[int, int], share: int) -> Generator[Place]:
        """The rows of `records`, window after window.

        Args:
            records: read as they are needed.
            key: chooses the order within the windows, such as a seed and an epoch.
            share: whose records these are, so that equal windows of two ranks differ in their order.
        """
        for number, tokens in enumerate(self._tokens(iter(records))):
            with TemporaryDirectory(prefix="tp2d-window-") as folder:  # what is mapped outlives its name
                rows = open_rows(tokens, self.packing, cache_dir=folder)
            if not len(rows):
                continue
            for row in permute(np.arange(len(rows)), len(rows), key=key, stream=(share << 40) + number).tolist():
                self.rows += 1
                yield rows, row

    def _tokens(self, records: Iterator[Record]) -> Iterator[Tokens]:
        parts: list[Joined] = []
        while some := list(islice(records, _RECORDS)):
            tokenised = tokenise(some, tokenizer=self.tokenizer, task=self.task, append_eos=self.append_eos)
            self.read += len(some)
            self.dropped.update(tokenised.dropped)
            parts.append(tokenised.joined())
            if sum(len(ids) for ids, _, _ in parts) >= self.window_tokens:
                yield _joined(parts)
                parts = []
        if parts:
            yield _joined(parts)


def _joined(parts: list[Joined]) -> Tokens:
    """The documents of all `parts`, in memory."""
    ids, lengths, trained = zip(*parts, strict=True)
    return Tokens(
        ids=np.concatenate(ids),
        offsets=np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64),
        trained=None if trained[0] is None else np.concatenate(trained).astype(np.uint8),
        read=0,
        dropped={},
        following=None,
        key="window",
    )


def batches(places: Iterator[Place], size: int, *, packing: Packing, pad_token_id: int, fill: bool) -> Iterator[Batch]:
    """Batches of `size` rows; the last rows, where they do not fill one, are left out, or filled up with empty rows."""
    while some := list(islice(places, size)):
        if len(some) < size and not fill:
            return
        parts = list({id(rows): rows for rows, _ in some}.values())
        index = {id(rows): number for number, rows in enumerate(parts)}
        empty = size - len(some)
        picks = Picks(
            parts=parts,
            part=np.array([index[id(rows)] for rows, _ in some] + [0] * empty),
            number=np.array([row for _, row in some] + [EMPTY] * empty),
        )
        yield collate(picks, packing=packing, pad_token_id=pad_token_id)


def empty_batch(size: int, *, packing: Packing, pad_token_id: int) -> Batch:
    """A batch of rows that count nothing."""
    nothing = np.full(size, EMPTY)
    return collate(
        Picks(parts=(), part=np.zeros_like(nothing), number=nothing), packing=packing, pad_token_id=pad_token_id
    )
