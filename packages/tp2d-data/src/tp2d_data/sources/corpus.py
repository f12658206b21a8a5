"""From a dataset's name to its documents, built-in, local or of the hub: a share, to train or to evaluate on."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import count, islice
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from tp2d_data.sources import stdlib
from tp2d_data.sources.files import FilesSource, is_data_name
from tp2d_data.sources.holdout import is_held_out, text_of
from tp2d_data.sources.hub import HubSource, HubStream, is_hub_name
from tp2d_data.sources.records import Record

Part = Literal["train", "eval"]
# Short names that the hub now keeps elsewhere, and the configuration they stand for.
_ALIASES = {"wikitext": "Salesforce/wikitext"}
_DEFAULT_CONFIGS = {"Salesforce/wikitext": "wikitext-2-raw-v1"}


class Source(Protocol):
    """Records by split. `check` raises ValueError for what can be known to be wrong without reading everything."""

    name: str

    def splits(self) -> tuple[str, ...]: ...
    def check(self, split: str, fields: tuple[str, ...]) -> None: ...
    def identity(self, split: str) -> Any: ...  # JSON that changes when the records may have changed
    def count(self, split: str) -> int: ...  # ValueError for a stream whose size nobody knows
    def records(self, split: str, fields: tuple[str, ...], start: int = 0) -> Iterator[Record]: ...  # from `start` on


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """One dataset and which share of it is used; checks itself and reads nothing.

    Args:
        dataset_name: a hub name, a local file or folder, or `builtin:stdlib`.
        dataset_config: a configuration of a hub dataset; of a local folder, a folder in it.
        split: the split to train on.
        dataset_percentage: how much of the split is used, from its beginning; above 0, at most 100.
        holdout: share (0 to 1) of the documents kept out of training and used to evaluate on, chosen by content;
            without effect on a dataset that has a validation split.

    Raises:
        ValueError: a value out of range.
    """

    dataset_name: str
    dataset_config: str | None = None
    split: str = "train"
    dataset_percentage: float = 10.0
    holdout: float = 0.0

    def __post_init__(self) -> None:
        if not self.dataset_name:
            raise ValueError("dataset_name is empty; give a hub name, a local file or folder, or builtin:stdlib")
        if not (math.isfinite(self.dataset_percentage) and 0 < self.dataset_percentage <= 100):
            raise ValueError(f"dataset_percentage must be above 0 and at most 100, not {self.dataset_percentage}")
        if not 0 <= self.holdout < 1:
            raise ValueError(f"holdout must be at least 0 and below 1, not {self.holdout}")


@dataclass(frozen=True, kw_only=True)
class Documents:
    """The records of a corpus, iterable again and again: the first p % of a split, less the other part's share."""

    source: Source
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

    def _read(self, start: int) -> Iterator[Record]:
        records = self.source.records(self.split, self.fields, start)
        return records if self._limit is None else islice(records, max(0, self._limit - start))

    @cached_property
    def _limit(self) -> int | None:
        return None if self.percentage == 100 else round(self.source.count(self.split) * self.percentage / 100)

    def _is_wanted(self, record: Record) -> bool:
        return is_held_out(text_of(record.values), self.held_out_share) == self.wants_held_out


def open_corpus(
    corpus: Corpus,
    *,
    fields: tuple[str, ...],
    part: Part = "train",
    streaming: bool = False,
    cache_dir: str | Path | None = None,
) -> Documents:
    """Finds the documents of `corpus` and checks what can be checked quickly.

    Args:
        fields: those that are read of each record.
        part: to train on, or to evaluate on.
        streaming: read a hub dataset over the network; know local files by size and times instead of their content.
        cache_dir: see `storage.cache_root`.

    Raises:
        ValueError: no such dataset, configuration, split or field; an empty split; nothing to evaluate on; a
            percentage of a stream whose size nobody knows; the hub does not answer and the dataset is not cached.
    """
    if part not in get_args(Part):
        raise ValueError(f"part must be train or eval, not '{part}'")
    name, config = corpus.dataset_name, corpus.dataset_config
    path = Path(name).expanduser()
    source: Source
    if name.startswith("builtin:"):
        _require_builtin(name, config)
        source = stdlib.StdlibSource(cache_dir)
    elif path.exists():
        # Hashing the content would read all of it, and a stream is for data too large to be read before the first step.
        source = FilesSource(_configured(path, config), cache_dir=cache_dir, by_content=not streaming)
    elif not is_hub_name(name) or is_data_name(path):
        raise ValueError(f"dataset {name} does not exist; give a hub name, a local file or folder, or {stdlib.NAME}")
    else:
        name = _ALIASES.get(name, name)
        source = (HubStream if streaming else HubSource)(name, config or _DEFAULT_CONFIGS.get(name))
    return _share(corpus, source, fields=fields, part=part)


def _require_builtin(name: str, config: str | None) -> None:
    if name != stdlib.NAME:
        raise ValueError(f"dataset '{name}' is unknown; the only built-in one is {stdlib.NAME}")
    if config is not None:
        raise ValueError(f"dataset {name} has no configurations; leave dataset_config out")


def _configured(path: Path, config: str | None) -> Path:
    """A configuration of a local dataset is a folder in it, as in a copy of a hub repository."""
    if config is None or (path / config).is_dir():
        return path / (config or "")
    folders = sorted(folder.name for folder in path.glob("*/") if not folder.name.startswith("."))
    raise ValueError(
        f"dataset {path} has no folder for dataset_config '{config}'; it has {', '.join(folders) or 'no folders'}"
    )


def _share(corpus: Corpus, source: Source, *, fields: tuple[str, ...], part: Part) -> Documents:
    split, held_out_share = _choose_split(corpus, source, part=part)
    source.check(split, fields)
    if corpus.dataset_percentage < 100 and isinstance(source, HubStream):
        source.count(split)
    return Documents(
        source=source,
        split=split,
        fields=fields,
        percentage=corpus.dataset_percentage,
        held_out_share=held_out_share,
        wants_held_out=part == "eval",
    )


def _choose_split(corpus: Corpus, source: Source, *, part: Part) -> tuple[str, float]:
    """The split to read and the share of it that is held out.

    A dataset with a validation split is evaluated on that. Only without one is a share of the training split held out.
    """
    splits = source.splits()
    if corpus.split not in splits:
        raise ValueError(f"dataset {source.name} has no split '{corpus.split}'; it has {', '.join(splits)}")
    if corpus.split != "validation" and "validation" in splits:
        return (corpus.split if part == "train" else "validation"), 0.0
    if part == "eval" and not corpus.holdout:
        raise ValueError(
            f"dataset {source.name} has no validation split and holdout is 0, so there is nothing to evaluate on; "
            "set holdout, such as 0.05"
        )
    return corpus.split, corpus.holdout
