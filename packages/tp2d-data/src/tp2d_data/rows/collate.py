"""From row numbers to a batch, without a loop over rows or tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tp2d_data.rows.packing import Integers, Packing, ranges
from tp2d_data.rows.rows import Rows

Batch = dict[str, NDArray[np.int64]]
EMPTY = -1
"""The number of a row without tokens, which fills up a last batch."""
IGNORED = -100
"""The label of a token that is not trained on, as `ignore_index` of torch.nn.functional.cross_entropy."""


@dataclass(frozen=True, kw_only=True)
class Picks:
    """The rows of a batch, each by its part (a source or block) and its number there; (batch,) each."""

    parts: Sequence[Rows]
    part: Integers
    number: Integers  # EMPTY: a row without a token


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """Where the tokens of some rows go; (tokens,) each."""

    source: Integers  # index into the part's tokens
    target: Integers  # index into the flat batch
    position: Integers  # in the piece


def collate(picks: Picks, *, packing: Packing, pad_token_id: int) -> Batch:
    """The batch of `picks`, each array (batch, seq_length) int64.

    Returns:
        `input_ids`; `labels`, not shifted, -100 on padding and on tokens that are not trained on; and either
        `position_ids`, which begin at 0 with each document and again with the padding (a document's first label is
        then -100), or for `pad` an `attention_mask`, 1 for a token.
    """
    shape = (len(picks.number), packing.seq_length)
    ids, labels = np.full(shape, pad_token_id), np.full(shape, IGNORED)
    positions = np.full(shape, -1)
    for part in np.unique(picks.part[picks.number != EMPTY]).tolist():
        places = np.flatnonzero((picks.part == part) & (picks.number != EMPTY))
        rows = picks.parts[part]
        layout = _layout(rows, picks.number[places], places, packing.seq_length)
        tokens = rows.tokens.ids[layout.source].astype(np.int64)
        ids.flat[layout.target] = tokens
        positions.flat[layout.target] = layout.position
        if rows.tokens.trained is not None:
            tokens = np.where(rows.tokens.trained[layout.source], tokens, IGNORED)
        if packing.has_positions:
            tokens = np.where(layout.position, tokens, IGNORED)
        labels.flat[layout.target] = tokens
    batch = {"input_ids": ids, "labels": labels}
    if packing.mode == "pad":
        return batch | {"attention_mask": (positions >= 0).astype(np.int64)}
    return batch | {"position_ids": _with_padding(positions)} if packing.has_positions else batch


def document_ends(batch: Batch) -> NDArray[np.int32] | None:
    """Where each document of a batch ends in its rows laid end to end, from 0 on.

    Args:
        batch: of `collate`.

    Returns:
        `(documents + 1,)`, a row's padding counted as a document; None: the batch has no positions.
    """
    if "position_ids" not in batch:
        return None
    positions = batch["position_ids"]
    return np.append(np.flatnonzero(positions == 0), positions.size).astype(np.int32)


def _layout(rows: Rows, numbers: Integers, places: Integers, seq_length: int) -> _Layout:
    pieces = rows.table.pieces(numbers)
    position = ranges(np.zeros_like(pieces.lengths), pieces.lengths)
    row_of_piece = np.repeat(np.arange(len(numbers)), pieces.counts)
    lengths = np.bincount(row_of_piece, weights=pieces.lengths, minlength=len(numbers)).astype(np.int64)
    return _Layout(
        source=np.repeat(pieces.begins, pieces.lengths) + position,
        target=ranges(places * seq_length, lengths),
        position=position,
    )


def _with_padding(positions: Integers) -> Integers:
    """The padding at a row's end gets positions from 0, as a document of its own."""
    columns = np.arange(positions.shape[1])
    used = (positions >= 0).sum(axis=1, keepdims=True)
    return np.where(positions >= 0, positions, columns - used)
