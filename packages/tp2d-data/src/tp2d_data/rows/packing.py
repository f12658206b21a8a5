"""From documents of any length to rows of one length.

A row is a list of pieces, a piece a run of tokens of one document. Three ways to fill rows:

- `pad`: one document a row, cut to the row's length. The tokens cut off are lost, and padding is computed on.
- `concat`: all documents one after the other, cut wherever a row is full. There is no padding, but many documents are
  cut, and the tokens after a cut do not see those before it.
- `best_fit`: documents that fit into a row stay whole; a longer one is cut into full rows and a rest. Whole documents
  and rests are put where the least room is left over, the longest first ("best fit decreasing", Ding et al. 2024,
  "Fewer Truncations Improve Language Modeling"). Room that no piece fits into is padded.

In `concat` and `best_fit`, where a document is cut, the next piece begins with the last token of the piece before. So
every token but a document's first is predicted exactly once.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from tp2d_data.rows.best_fit import Integers, best_fit
from tp2d_data.storage import Damaged
from tp2d_data.values import require_at_least, require_integer

Mode = Literal["pad", "concat", "best_fit"]
WINDOW = 1 << 20
"""Documents that are packed together; this bounds the memory it takes, about 60 bytes each."""


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How rows are filled; checks itself.

    Args:
        mode: `pad`, `concat` or `best_fit`.
        seq_length: tokens of a row.
        respect_boundaries: whether a document in a row sees only itself: its positions begin at 0, attention does not
            cross its beginning, and no token is predicted from another document. `pad` has one document a row.
        append_eos: whether documents end with the end-of-text token; None: where `respect_boundaries` is off, because
            there nothing else keeps documents apart.

    Raises:
        ValueError: an unknown mode, or fewer than 2 tokens a row.
    """

    mode: Mode = "best_fit"
    seq_length: int
    respect_boundaries: bool = True
    append_eos: bool | None = None

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise ValueError(f"packing must be {', '.join(get_args(Mode))}, not '{self.mode}'")
        require_at_least("seq_length", require_integer("seq_length", self.seq_length), 2)

    @property
    def appends_eos(self) -> bool:
        """Whether documents end with the end-of-text token, with `append_eos=None` decided."""
        return self.append_eos if self.append_eos is not None else self.mode != "pad" and not self.respect_boundaries

    @property
    def has_positions(self) -> bool:
        """Whether batches have positions that start again with each document."""
        return self.respect_boundaries and self.mode != "pad"


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """The pieces of some rows, row after row."""

    begins: Integers  # (pieces,), index of the first token
    lengths: Integers  # (pieces,), tokens, at least 1
    counts: Integers  # (rows,), pieces of each row


class Table(Protocol):
    """Which pieces a row has; the tokens that stand in rows, and those that stand in none."""

    @property
    def filled(self) -> int: ...
    @property
    def cut_tokens(self) -> int: ...
    def __len__(self) -> int: ...
    def pieces(self, numbers: Integers) -> Pieces: ...


@dataclass(frozen=True, kw_only=True)
class PaddedTable:
    """`pad`: row i is the beginning of document i."""

    offsets: Integers  # (documents + 1,)
    seq_length: int

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def filled(self) -> int:
        edges = (self.offsets[begin : begin + WINDOW + 1] for begin in range(0, len(self), WINDOW))
        return sum(int(np.minimum(np.diff(some), self.seq_length).sum()) for some in edges)

    @property
    def cut_tokens(self) -> int:
        return int(self.offsets[-1]) - self.filled

    def pieces(self, numbers: Integers) -> Pieces:
        begins = self.offsets[numbers]
        lengths = np.minimum(self.offsets[numbers + 1] - begins, self.seq_length)
        return Pieces(begins=begins, lengths=lengths, counts=np.ones_like(begins))


@dataclass(frozen=True, kw_only=True)
class JoinedTable:
    """`concat`: row i is `tokens[i * (seq_length - 1):][:seq_length]`, cut at the documents' boundaries."""

    offsets: Integers  # (documents + 1,)
    seq_length: int

    def __len__(self) -> int:
        return -(-max(0, int(self.offsets[-1]) - 1) // (self.seq_length - 1))

    @property
    def filled(self) -> int:
        return int(self.offsets[-1]) + max(0, len(self) - 1)

    @property
    def cut_tokens(self) -> int:
        return 0

    def pieces(self, numbers: Integers) -> Pieces:
        starts = numbers * (self.seq_length - 1)
        ends = np.minimum(starts + self.seq_length, self.offsets[-1])
        first = np.searchsorted(self.offsets, starts, side="right") - 1
        last = np.searchsorted(self.offsets, ends, side="left") - 1
        counts = last - first + 1
        documents = ranges(first, counts)
        begins = np.maximum(self.offsets[documents], np.repeat(starts, counts))
        stops = np.minimum(self.offsets[documents + 1], np.repeat(ends, counts))
        return Pieces(begins=begins, lengths=stops - begins, counts=counts)


@dataclass(frozen=True, kw_only=True)
class PackedTable:
    """`best_fit`: row i has the pieces `rows[i]` to `rows[i + 1]`."""

    begins: Integers  # (pieces,)
    lengths: NDArray[np.int32]  # (pieces,)
    rows: Integers  # (rows + 1,)
    filled: int
    cut_tokens: int

    def __len__(self) -> int:
        return len(self.rows) - 1

    def pieces(self, numbers: Integers) -> Pieces:
        first = self.rows[numbers]
        counts = self.rows[numbers + 1] - first
        chosen = ranges(first, counts)
        return Pieces(begins=self.begins[chosen], lengths=self.lengths[chosen].astype(np.int64), counts=counts)


def ranges(first: Integers, counts: Integers) -> Integers:
    """`range(first[0], first[0] + counts[0])`, then the next one, in one array."""
    ends = np.cumsum(counts)
    return np.repeat(first - (ends - counts), counts) + np.arange(ends[-1] if len(ends) else 0)


def cut(begins: Integers, lengths: Integers, seq_length: int) -> tuple[Integers, Integers]:
    """Pieces of at most `seq_length` tokens, (pieces,) begins and lengths, of the documents in their order.

    A document's next piece begins with the last token of the one before.
    """
    stride = seq_length - 1
    counts = np.maximum(1, -(-(lengths - 1) // stride))
    steps = ranges(np.zeros_like(counts), counts) * stride
    return np.repeat(begins, counts) + steps, np.minimum(np.repeat(lengths, counts) - steps, seq_length)


Keep = Callable[[int, int], NDArray[np.bool_]]
"""Which of the documents `start` to `stop` have a label in their first row."""


def write_packed(folder: Path, offsets: Integers, *, packing: Packing, keep: Keep | None = None) -> None:
    """Packs documents into `folder`, for `open_packed`: by best fit, or with mode `pad` each into a row of its own.

    Args:
        folder: an empty one.
        offsets: (documents + 1,), where each begins.
        packing: how.
        keep: None: all documents, long ones cut into pieces. Else documents whose labels stand in a context (a chat's
            answers): those without a label are left out, and long ones are cut to one row.
    """
    files = {name: (folder / f"{name}.bin").open("wb") for name in ("begins", "lengths", "rows")}
    files["rows"].write(np.zeros(1, "<i8").tobytes())
    pieces = filled = cut_tokens = 0
    for start in range(0, len(offsets) - 1, WINDOW):
        edges = np.asarray(offsets[start : start + WINDOW + 1])
        begins, lengths = _window(edges, packing=packing, kept=keep and keep(start, start + len(edges) - 1))
        order, ends = best_fit(lengths, packing.seq_length) if packing.mode == "best_fit" else _singly(len(lengths))
        files["begins"].write(begins[order].astype("<i8").tobytes())
        files["lengths"].write(lengths[order].astype("<i4").tobytes())
        files["rows"].write((ends[1:] + pieces).astype("<i8").tobytes())
        pieces, filled = pieces + len(order), filled + int(lengths.sum())
        cut_tokens += int(edges[-1] - edges[0] - lengths.sum()) if keep else 0
    for file in files.values():
        file.close()
    (folder / "meta.json").write_text(json.dumps({"filled": filled, "cut_tokens": cut_tokens}))


def _window(edges: Integers, *, packing: Packing, kept: NDArray[np.bool_] | None) -> tuple[Integers, Integers]:
    begins, lengths = edges[:-1], np.diff(edges)
    if kept is None:
        return cut(begins, lengths, packing.seq_length)
    return begins[kept], np.minimum(lengths[kept], packing.seq_length)


def _singly(pieces: int) -> tuple[Integers, Integers]:
    return np.arange(pieces), np.arange(pieces + 1)


def open_packed(folder: Path) -> PackedTable:
    """The rows that `write_packed` wrote, memory-mapped.

    Raises:
        ValueError: the folder is damaged.
    """
    try:
        meta = json.loads((folder / "meta.json").read_text())
        return PackedTable(
            begins=_map(folder / "begins.bin", "<i8"),
            lengths=_map(folder / "lengths.bin", "<i4"),
            rows=_map(folder / "rows.bin", "<i8"),
            filled=meta["filled"],
            cut_tokens=meta["cut_tokens"],
        )
    except (OSError, ValueError, KeyError) as error:
        raise Damaged("rows", folder, error) from error


def _map(path: Path, dtype: str) -> NDArray:
    return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype)
