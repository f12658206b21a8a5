"""Tokenised documents on disk, memory-mapped: written once per machine, read by every rank, held in memory by none.

`tokens.bin` has the ids of all rows one after the other, `offsets.bin` where each row begins (and last, where the
last one ends), `meta.json` the counts. A row is a whole document: it is cut to a length only when a batch is made,
so that one cache serves every sequence length.
"""

import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tp2d_data.sources import Documents
from tp2d_data.storage import cache_root, digest, publish
from tp2d_data.tokenizer import encode, highest_id, tokenizer_identity

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

FORMAT = 1
MIN_TOKENS = 2  # a row of one token predicts nothing
_BATCH_DOCUMENTS, _BATCH_CHARACTERS = 1024, 4_000_000


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Tokenised rows: row i is `tokens[offsets[i]:offsets[i + 1]]`, its length at least 2."""

    tokens: NDArray[np.unsignedinteger]  # (tokens,), memory-mapped
    offsets: NDArray[np.int64]  # (rows + 1,), memory-mapped
    documents: int  # read, including those dropped for having fewer than two tokens

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def kept_tokens(self, seq_length: int) -> int:
        """Tokens of all rows when each is cut to `seq_length`."""
        step = 1 << 20  # rows at a time, so that the lengths of a large corpus are never all in memory
        pieces = (self.offsets[begin : begin + step + 1] for begin in range(0, len(self), step))
        return sum(int(np.minimum(np.diff(piece), seq_length).sum()) for piece in pieces)


def load_rows(
    documents: Documents, *, tokenizer: "PreTrainedTokenizerBase", cache_dir: str | Path | None = None
) -> Rows:
    """The rows of `documents`, from the cache or tokenised now, by one process per machine.

    Raises:
        ValueError: a document cannot be read; a cached folder is damaged.
    """
    dtype = "<u2" if highest_id(tokenizer) < 2**16 else "<u4"
    identity = {
        "format": FORMAT,
        "documents": documents.identity(),
        "tokenizer": tokenizer_identity(tokenizer),
        "dtype": dtype,
        "min_tokens": MIN_TOKENS,
    }
    folder = cache_root(cache_dir) / "tokens" / digest(identity)
    publish(folder, lambda temporary: _tokenise(documents, tokenizer, temporary, dtype))
    return _open(folder)


def _tokenise(documents: Documents, tokenizer: "PreTrainedTokenizerBase", folder: Path, dtype: str) -> None:
    logger.info("tokenising %s", documents.source.name)
    count = rows = total = 0
    with (folder / "tokens.bin").open("wb") as tokens, (folder / "offsets.bin").open("wb") as offsets:
        offsets.write(np.zeros(1, "<i8").tobytes())
        for texts in _batches(documents):
            ids = [row for row in encode(tokenizer, texts) if len(row) >= MIN_TOKENS]
            ends = total + np.cumsum([len(row) for row in ids], dtype="<i8")
            tokens.write(np.fromiter(chain.from_iterable(ids), dtype).tobytes())
            offsets.write(ends.tobytes())
            count, rows, total = count + len(texts), rows + len(ids), int(ends[-1]) if len(ids) else total
    meta = {"documents": count, "rows": rows, "tokens": total, "dtype": dtype}
    (folder / "meta.json").write_text(json.dumps(meta))
    logger.info("tokenised %s: %d documents, %d rows, %d tokens", documents.source.name, count, rows, total)


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    """Lists of documents, bounded in number and in characters, so that memory is too."""
    batch: list[str] = []
    characters = 0
    for text in documents:
        batch.append(text)
        characters += len(text)
        if len(batch) == _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _open(folder: Path) -> Rows:
    try:
        meta = json.loads((folder / "meta.json").read_text())
        tokens = _map(folder / "tokens.bin", meta["dtype"], meta["tokens"])
        offsets = _map(folder / "offsets.bin", "<i8", meta["rows"] + 1)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"the cached tokens in {folder} are damaged ({error}); delete that folder") from error
    return Rows(tokens=tokens, offsets=offsets, documents=meta["documents"])


def _map(path: Path, dtype: str, length: int) -> NDArray:
    expected = length * np.dtype(dtype).itemsize
    if (size := path.stat().st_size) != expected:
        raise ValueError(f"{path.name} has {size} bytes instead of {expected}")
    # An empty file cannot be mapped.
    return np.memmap(path, dtype=dtype, mode="r") if length else np.zeros(0, dtype)
