"""Rows of one length, made of tokenised documents."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tp2d_data.progress import Progress, told
from tp2d_data.rows.packing import JoinedTable, Packing, PaddedTable, Table, open_packed, write_packed
from tp2d_data.storage import cache_root, hash_of, publish
from tp2d_data.tokens.cache import Tokens

logger = logging.getLogger(__name__)

_FORMAT = 1


class TooFewRows(ValueError):
    """The data give fewer rows than one global batch; the message has the counts."""


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Counts of documents, rows and tokens, of one epoch over all ranks."""

    documents: int  # read
    available: int | None = (
        None  # of the datasets, those that dataset_percentage leaves out included; None: not counted
    )
    dropped: dict[str, int]  # reason -> documents left out
    rows: int
    tokens: int  # in rows; a token in two rows counts twice
    cut_tokens: int  # in no row
    padded_tokens: int  # padding, which is computed on besides the tokens


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Tokens, and which of them stand in each row."""

    tokens: Tokens
    table: Table

    def __len__(self) -> int:
        return len(self.table)


def open_rows(
    tokens: Tokens, packing: Packing, *, cache_dir: str | Path | None = None, progress: Progress = logger.info
) -> Rows:
    """The rows of `tokens`; rows that have to be computed are computed once per machine.

    `progress` is told where that takes more than some seconds.
    """
    if packing.mode == "concat":
        return Rows(tokens=tokens, table=JoinedTable(offsets=tokens.offsets, seq_length=packing.seq_length))
    if packing.mode == "pad" and tokens.trained is None:
        return Rows(tokens=tokens, table=PaddedTable(offsets=tokens.offsets, seq_length=packing.seq_length))
    folder = folder_of_rows(tokens.key, packing, cache_dir)
    keep = None if tokens.trained is None else lambda start, stop: _labelled(tokens, start, stop, packing.seq_length)

    def write(temporary: Path) -> None:
        with told(progress, f"packing {len(tokens):,} documents into rows"):
            write_packed(temporary, tokens.offsets, packing=packing, keep=keep)

    publish(folder, write)
    return Rows(tokens=tokens, table=open_packed(folder))


def folder_of_rows(key: str, packing: Packing, cache_dir: str | Path | None) -> Path:
    """Where the rows of the tokens called `key` are kept."""
    return cache_root(cache_dir) / "rows" / hash_of([_FORMAT, key, packing.mode, packing.seq_length])


def statistics(parts: Iterable[Rows], seq_length: int) -> Statistics:
    """The counts of several sources together."""
    parts = list(parts)
    dropped: dict[str, int] = {}
    for part in parts:
        for reason, count in part.tokens.dropped.items():
            dropped[reason] = dropped.get(reason, 0) + count
    available = [part.tokens.available for part in parts]
    rows, tokens = sum(map(len, parts)), sum(part.table.filled for part in parts)
    return Statistics(
        documents=sum(part.tokens.read for part in parts),
        available=None if None in available else sum(filter(None, available)),
        dropped=dropped,
        rows=rows,
        tokens=tokens,
        cut_tokens=sum(part.table.cut_tokens for part in parts),
        padded_tokens=rows * seq_length - tokens,
    )


def _labelled(tokens: Tokens, start: int, stop: int, seq_length: int) -> NDArray[np.bool_]:
    """Which of the documents `start` to `stop` have a label behind their first token and within `seq_length`."""
    assert tokens.trained is not None
    edges = np.asarray(tokens.offsets[start : stop + 1])
    before = np.concatenate([[0], np.cumsum(tokens.trained[edges[0] : edges[-1]], dtype=np.int64)])
    begins = edges[:-1] - edges[0]
    ends = begins + np.minimum(np.diff(edges), seq_length)
    return before[ends] > before[begins + 1]
