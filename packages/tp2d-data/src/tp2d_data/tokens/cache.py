"""Tokenised documents on disk, memory-mapped: written once per machine, read by every rank, held in memory by none.

`tokens.bin` has the ids of all documents one after the other, `offsets.bin` where each begins (and last, where the last
one ends), `trained.bin` a byte for each token that says whether it is a label (only where not all are), `meta.json` the
counts. Nothing here depends on the rows' length, so one cache serves every length and every way of packing.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tp2d_data.ahead import Ahead
from tp2d_data.progress import Clock, Progress
from tp2d_data.sources.corpus import Documents
from tp2d_data.sources.records import Record
from tp2d_data.storage import Damaged, cache_root, hash_of, publish
from tp2d_data.tokens.encoders import MOST, Encoders, cores
from tp2d_data.tokens.examples import Task, Tokenised, tokenise
from tp2d_data.tokens.tokenizer import highest_id, tokenizer_identity

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

FORMAT = 2
Numbered = tuple[int, Record]
_BATCH_RECORDS, _BATCH_CHARACTERS = 1024, 250_000  # the tokenizer needs about 130 bytes a character while it works
_FIRST_GROUPS = 16  # by the time processes have started, these are done here


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Tokenised documents: document i is `ids[offsets[i]:offsets[i + 1]]`, at least 2 tokens."""

    ids: NDArray[np.unsignedinteger]  # (tokens,), memory-mapped
    offsets: NDArray[np.int64]  # (documents + 1,), memory-mapped
    trained: NDArray[np.uint8] | None  # (tokens,), memory-mapped: 1 for a label; None: all are
    read: int  # records read, those dropped included
    available: int | None = None  # records of the split, where a percentage leaves some out; None: not counted
    dropped: dict[str, int]  # reason -> records
    following: int | None  # number of the source's record that a stream's next block begins with; None: no more
    key: str  # the hash of everything they depend on: changes when they may have changed

    def __len__(self) -> int:
        return len(self.offsets) - 1


@dataclass(frozen=True, kw_only=True)
class Tokeniser:
    """Makes tokens of documents, once per machine, and takes them from the cache afterwards.

    Args:
        documents: what is tokenised.
        task: what a record is and which of its tokens are trained on; `documents` reads its fields.
        tokenizer: with a padding token, see `load_tokenizer`.
        append_eos: whether every document of `loss_on="all"` ends with the end-of-text token.
        cache_dir: see `storage.cache_root`.
        progress: is told every few seconds how far tokenising is.
    """

    documents: Documents
    task: Task
    tokenizer: "PreTrainedTokenizerBase"
    append_eos: bool
    cache_dir: str | Path | None
    progress: Progress = logger.info

    def all(self) -> Tokens:
        """All documents.

        Raises:
            ValueError: a document cannot be read; a cached folder is damaged.
        """
        return self._load(start=0, limit=None)

    def block(self, start: int, limit: int) -> Tokens:
        """The documents from the source's record `start` on, until there are `limit` tokens; see `all`."""
        return self._load(start=start, limit=limit)

    @property
    def is_cached(self) -> bool:
        """Whether `all` has nothing to tokenise."""
        return self._folder(0, None).exists()

    def folder_of_block(self, start: int, limit: int) -> Path:
        """The cache folder of `block`."""
        return self._folder(start, limit)

    def _folder(self, start: int, limit: int | None) -> Path:
        source, share = self.documents.identity()  # anew each time: files may change between blocks
        identity: dict[str, Any] = {
            "format": FORMAT,
            "documents": [source, self.task.identity(), *share],
            "tokenizer": self._tokenizer_identity,
            "append_eos": self.append_eos,
            "dtype": self._dtype,
        }
        if limit is not None:  # how records are grouped decides where a block ends, and nothing else
            identity["block"] = [start, limit, _BATCH_RECORDS, _BATCH_CHARACTERS]
        return cache_root(self.cache_dir) / "tokens" / hash_of(identity)

    @cached_property
    def _tokenizer_identity(self) -> str:
        return tokenizer_identity(self.tokenizer, with_chats=self.task.loss_on == "assistant")

    @cached_property
    def _dtype(self) -> str:
        return "<u2" if highest_id(self.tokenizer) < 2**16 else "<u4"

    def _load(self, *, start: int, limit: int | None) -> Tokens:
        folder = self._folder(start, limit)
        publish(folder, partial(self._write, start=start, limit=limit))
        return open_tokens(folder)

    def _write(self, folder: Path, *, start: int, limit: int | None) -> None:
        name, groups = self.documents.source.name, grouped(self.documents.numbered(start))
        writer = _Writer(folder, self._dtype, report=partial(self._report, name, Clock()))
        # What has been started beyond the end of a block is thrown away, so a block has fewer processes.
        most = MOST if limit is None else MOST // 4
        with closing(self._tokenised(groups, processes=min(cores(), most))) as tokenised:
            for group, some in tokenised:
                if limit is not None and writer.tokens >= limit:
                    writer.close(following=group[0][0], available=None)
                    return
                writer.add(some, read=len(group))
        writer.close(following=None, available=self.documents.available)

    def _tokenised(
        self, groups: Iterator[list[Numbered]], *, processes: int
    ) -> Generator[tuple[list[Numbered], Tokenised]]:
        """The groups with their tokens: the first ones are made here, further ones in other processes."""
        work = partial(tokenise, tokenizer=self.tokenizer, task=self.task, append_eos=self.append_eos)
        yield from Ahead(lambda group: work(_records(group)), islice(groups, _FIRST_GROUPS), depth=2, workers=2)
        first = next(groups, None)
        if first is None:
            return
        groups = chain([first], groups)
        if not self.tokenizer.is_fast or self.task.loss_on == "assistant":
            yield from Ahead(lambda group: work(_records(group)), groups, depth=2, workers=2)
            return
        with Encoders(self.tokenizer, processes=processes) as encoders:
            elsewhere = partial(work, encoder=encoders.encode)
            yield from Ahead(
                lambda group: elsewhere(_records(group)), groups, depth=2 * processes, workers=processes + 1
            )

    def _report(
        self, name: str, clock: Clock, read: int, tokens: int, dropped: Mapping[str, int], *, done: bool
    ) -> None:
        if done or clock.due():
            what = "tokenised" if done else "tokenising"
            without = "".join(f", {count:,} dropped ({reason})" for reason, count in dropped.items())
            self.progress(f"{what} {name}: {read:,} documents, {tokens:,} tokens{without}, {clock.seconds():.0f} s")


class _Writer:
    """Appends documents to the files of a folder."""

    def __init__(self, folder: Path, dtype: str, *, report: Callable[..., None]) -> None:
        self._folder, self._dtype, self._report = folder, dtype, report
        self._files = {name: (folder / f"{name}.bin").open("wb") for name in ("tokens", "offsets", "trained")}
        self._files["offsets"].write(np.zeros(1, "<i8").tobytes())
        self.tokens = self._read = self._kept = 0
        self._all_trained = True
        self._dropped: Counter[str] = Counter()

    def add(self, some: Tokenised, *, read: int) -> None:
        ids, lengths, trained = some.joined()
        self._files["tokens"].write(ids.astype(self._dtype).tobytes())
        self._files["offsets"].write((self.tokens + np.cumsum(lengths)).astype("<i8").tobytes())
        if trained is not None:
            self._all_trained = False
            self._files["trained"].write(trained.astype("u1").tobytes())
        self._dropped.update(some.dropped)
        self._read, self._kept, self.tokens = self._read + read, self._kept + len(lengths), self.tokens + lengths.sum()
        self._report(self._read, int(self.tokens), self._dropped, done=False)

    def close(self, *, following: int | None, available: int | None) -> None:
        for file in self._files.values():
            file.close()
        if self._all_trained:
            (self._folder / "trained.bin").unlink()
        meta = {
            "read": self._read,
            "documents": self._kept,
            "tokens": int(self.tokens),
            "dtype": self._dtype,
            "all_trained": self._all_trained,
            "dropped": dict(self._dropped),
            "following": following,
            "available": available,
        }
        (self._folder / "meta.json").write_text(json.dumps(meta))
        self._report(self._read, int(self.tokens), self._dropped, done=True)


def _records(group: list[Numbered]) -> list[Record]:
    return [record for _, record in group]


def grouped(records: Iterable[Numbered]) -> Iterator[list[Numbered]]:
    """Lists of records, bounded in number and in characters, which bounds memory."""
    group: list[Numbered] = []
    characters = 0
    for number, record in records:
        group.append((number, record))
        characters += sum(len(value) if isinstance(value, str) else len(repr(value)) for value in record.values)
        if len(group) == _BATCH_RECORDS or characters >= _BATCH_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


def open_tokens(folder: Path) -> Tokens:
    """The tokens that were written to `folder`, memory-mapped.

    Raises:
        ValueError: it is damaged.
    """
    try:
        meta = json.loads((folder / "meta.json").read_text())
        return Tokens(
            ids=_map(folder / "tokens.bin", meta["dtype"], meta["tokens"]),
            offsets=_map(folder / "offsets.bin", "<i8", meta["documents"] + 1),
            trained=None if meta["all_trained"] else _map(folder / "trained.bin", "u1", meta["tokens"]),
            read=meta["read"],
            dropped=meta["dropped"],
            following=meta["following"],
            available=meta.get("available"),  # a cache of an earlier version does not have it
            key=folder.name,
        )
    except (OSError, ValueError, KeyError) as error:
        raise Damaged("tokens", folder, error) from error


def _map(path: Path, dtype: str, length: int) -> NDArray:
    expected = length * np.dtype(dtype).itemsize
    if (size := path.stat().st_size) != expected:
        raise ValueError(f"{path.name} has {size} bytes instead of {expected}")
    # An empty file cannot be mapped.
    return np.memmap(path, dtype=dtype, mode="r") if length else np.zeros(0, dtype)
