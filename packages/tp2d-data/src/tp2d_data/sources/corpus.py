"""From a dataset's name to its documents, built-in, local or of the hub: a share, to train or to evaluate on."""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import count, islice
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from tp2d_data.progress import Progress
from tp2d_data.sources import stdlib
from tp2d_data.sources.files import FilesSource, is_data_name
from tp2d_data.sources.holdout import is_held_out, text_of
from tp2d_data.sources.hub import HubSource, HubStream, is_hub_name
from tp2d_data.sources.own import OwnSource, Source, require_source
from tp2d_data.sources.records import Record

logger = logging.getLogger(__name__)

Part = Literal["train", "eval"]
# Short names that the hub now keeps elsewhere, and the configuration they stand for.
_ALIASES = {"wikitext": "Salesforce/wikitext"}
_DEFAULT_CONFIGS = {"Salesforce/wikitext": "wikitext-2-raw-v1"}


class Dataset(Protocol):
    """Records by split. `check` raises ValueError for what can be known to be wrong without reading everything."""

    name: str

    def splits(self) -> tuple[str, ...]: ...
    def check(self, split: str, fields: tuple[str, ...]) -> None: ...
    def identity(self, split: str) -> Any: ...  # JSON that changes when the records may have changed
    def size(self, split: str) -> int | None: ...  # bytes to read, roughly; None: not known, or not on this machine
    def count(self, split: str) -> int: ...  # ValueError for a stream whose size nobody knows
    def records(self, split: str, fields: tuple[str, ...], start: int = 0) -> Iterator[Record]: ...  # from `start` on


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """One dataset and which share of it is used; checks itself and reads nothing.

    Args:
        dataset_name: a hub name, a local file or folder, `builtin:stdlib`, or your own records (`Source`).
        dataset_config: a configuration of a hub dataset; of a local folder, a folder in it.
        split: the split to train on. To evaluate on: the one to read of a dataset without a validation split.
        dataset_percentage: how much of the split is used, from its beginning; above 0, at most 100.
        holdout_percentage: how much of that is kept out of training and used to evaluate on, chosen by content; at
            least 0, below 100; without effect on a dataset that has a validation split.

    Raises:
        ValueError: a value out of range, or records without a name and an identity.
    """

    dataset_name: str | Source
    dataset_config: str | None = None
    split: str = "train"
    dataset_percentage: float = 100.0
    holdout_percentage: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.dataset_name, str):
            require_source(self.dataset_name)
        elif not self.dataset_name:
            raise ValueError("dataset_name is empty; give a hub name, a local file or folder, or builtin:stdlib")
        if not (math.isfinite(self.dataset_percentage) and 0 < self.dataset_percentage <= 100):
            raise ValueError(f"dataset_percentage must be above 0 and at most 100, not {self.dataset_percentage}")
        if not 0 <= self.holdout_percentage < 100:
            raise ValueError(f"holdout_percentage must be at least 0 and below 100, not {self.holdout_percentage}")

    @property
    def name(self) -> str:
        """The dataset's name, for messages."""
        return self.dataset_name if isinstance(self.dataset_name, str) else self.dataset_name.name


@dataclass(frozen=True, kw_only=True)
class Documents:
    """The records of a corpus, iterable again and again: the first p % of a split, less the other part's share."""

    source: Dataset
    split: str
    fields: tuple[str, ...]
    percentage: float
    held_out_share: float  # 0: the part is the whole split
    wants_held_out: bool

    def __iter__(self) -> Iterator[Record]:
        return self.records()

    def records(self, start: int = 0) -> Iterator[Record]:
        """The part's records, from record `start` of the split on; those before it are skipped and not parsed."""
        return (record for _, record in self.numbered(start)) if self.held_out_share else self._read(start)

    def numbered(self, start: int = 0) -> Iterator[tuple[int, Record]]:
        """As `records`, each with its number in the split, so that `numbered(number + 1)` continues after it."""
        numbered = zip(count(start), self._read(start), strict=False)
        if not self.held_out_share:
            return numbered
        return (pair for pair in numbered if self._is_wanted(pair[1]))

    def identity(self) -> tuple[Any, list[Any]]:
        """Two JSON values that change when the records may have changed: the source's, and the share of it."""
        return self.source.identity(self.split), [self.percentage, self.held_out_share, self.wants_held_out]

    @property
    def size(self) -> int | None:
        """Bytes that reading the split takes, roughly; None: not known, or not on this machine."""
        return self.source.size(self.split)

    @cached_property
    def available(self) -> int | None:
        """Documents of the split, those beyond the percentage included; None: it is read to its end and not counted."""
        return None if self.percentage == 100 else self.source.count(self.split)

    def _read(self, start: int) -> Iterator[Record]:
        records = self.source.records(self.split, self.fields, start)
        return records if self._limit is None else islice(records, max(0, self._limit - start))

    @cached_property
    def _limit(self) -> int | None:
        return None if self.available is None else round(self.available * self.percentage / 100)

    def _is_wanted(self, record: Record) -> bool:
        return is_held_out(text_of(record.values), self.held_out_share) == self.wants_held_out


def open_corpus(
    corpus: Corpus,
    *,
    fields: tuple[str, ...],
    part: Part = "train",
    streaming: bool = False,
    cache_dir: str | Path | None = None,
    progress: Progress = logger.info,
) -> Documents:
    """Finds the documents of `corpus` to train on, or its part to evaluate on, and checks what can be checked quickly.

    Args:
        fields: those that are read of each record.
        part: to train on, or to evaluate on.
        streaming: read a hub dataset over the network; know local files by size and times instead of their content.
        cache_dir: see `storage.cache_root`.
        progress: is told of downloads, and of what else takes more than some seconds.

    Raises:
        ValueError: no such dataset, configuration, split or field; an empty split; nothing to evaluate on; a
            percentage of a stream whose size nobody knows; the hub does not answer and the dataset is not cached.
    """
    if part not in get_args(Part):
        raise ValueError(f"part must be train or eval, not '{part}'")
    source = _find(corpus, streaming=streaming, cache_dir=cache_dir, progress=progress)
    split, held_out_percentage = _choose_split(corpus, source, part=part)
    return _documents(
        corpus, source, split=split, fields=fields, held_out_share=held_out_percentage / 100, held_out=part == "eval"
    )


def open_evaluation_corpus(
    corpus: Corpus,
    *,
    fields: tuple[str, ...],
    cache_dir: str | Path | None = None,
    progress: Progress = logger.info,
) -> Documents:
    """Finds the documents of a corpus that only evaluates: its validation split, else `split`, else its only split.

    Raises:
        ValueError: as `open_corpus`; several splits, none of them one of these.
    """
    source = _find(corpus, streaming=False, cache_dir=cache_dir, progress=progress)
    splits = source.splits()
    named = [split for split in ("validation", corpus.split) if split in splits]
    if not named and len(splits) > 1:
        raise ValueError(
            f"dataset {source.name}, to evaluate on, has neither the split 'validation' nor '{corpus.split}'; it has "
            f"{', '.join(splits)}; set split to one of them, or give a file of one split"
        )
    return _documents(corpus, source, split=[*named, *splits][0], fields=fields)


def _find(corpus: Corpus, *, streaming: bool, cache_dir: str | Path | None, progress: Progress) -> Dataset:
    name, config = corpus.dataset_name, corpus.dataset_config
    if not isinstance(name, str):
        _require_no_config(corpus)
        return OwnSource(name)
    path = Path(name).expanduser()
    if name.startswith("builtin:"):
        if name != stdlib.NAME:
            raise ValueError(f"dataset '{name}' is unknown; the only built-in one is {stdlib.NAME}")
        _require_no_config(corpus)
        return stdlib.StdlibSource(cache_dir, progress=progress)
    if path.exists():
        # Hashing the content would read all of it, and a stream is for data too large to be read before the first step.
        by_content = not streaming
        return FilesSource(_configured(path, config), cache_dir=cache_dir, by_content=by_content, progress=progress)
    if not is_hub_name(name) or is_data_name(path):
        raise ValueError(f"dataset {name} does not exist; give a hub name, a local file or folder, or {stdlib.NAME}")
    name = _ALIASES.get(name, name)
    kind = HubStream if streaming else HubSource
    return kind(name, config or _DEFAULT_CONFIGS.get(name), cache_dir=cache_dir, progress=progress)


def _require_no_config(corpus: Corpus) -> None:
    if corpus.dataset_config is not None:
        raise ValueError(f"dataset {corpus.name} has no configurations; leave dataset_config out")


def _configured(path: Path, config: str | None) -> Path:
    """A configuration of a local dataset is a folder in it, as in a copy of a hub repository."""
    if config is None or (path / config).is_dir():
        return path / (config or "")
    folders = sorted(folder.name for folder in path.glob("*/") if not folder.name.startswith("."))
    raise ValueError(
        f"dataset {path} has no folder for dataset_config '{config}'; it has {', '.join(folders) or 'no folders'}"
    )


def _documents(
    corpus: Corpus,
    source: Dataset,
    *,
    split: str,
    fields: tuple[str, ...],
    held_out_share: float = 0.0,
    held_out: bool = False,
) -> Documents:
    source.check(split, fields)
    if corpus.dataset_percentage < 100 and isinstance(source, HubStream):
        source.count(split)
    return Documents(
        source=source,
        split=split,
        fields=fields,
        percentage=corpus.dataset_percentage,
        held_out_share=held_out_share,
        wants_held_out=held_out,
    )


def _choose_split(corpus: Corpus, source: Dataset, *, part: Part) -> tuple[str, float]:
    """The split to read and the percentage of it that is held out.

    A dataset with a validation split is evaluated on that. Only without one is a share of the training split held out.
    """
    splits = source.splits()
    if corpus.split not in splits:
        raise ValueError(f"dataset {source.name} has no split '{corpus.split}'; it has {', '.join(splits)}")
    if corpus.split != "validation" and "validation" in splits:
        return (corpus.split if part == "train" else "validation"), 0.0
    if part == "eval" and not corpus.holdout_percentage:
        raise ValueError(
            f"dataset {source.name} has no validation split and holdout_percentage is 0, so there is nothing to "
            "evaluate on; set holdout_percentage, such as 5, or eval_dataset"
        )
    return corpus.split, corpus.holdout_percentage
