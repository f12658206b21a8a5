"""From a dataset's name to its documents: built-in, local or of the hub; a share of them; to train or to evaluate."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count, islice
from pathlib import Path
from typing import Any, Literal, Protocol

from tp2d_data import stdlib
from tp2d_data.examples import Task
from tp2d_data.files import FilesSource, is_data_name
from tp2d_data.holdout import is_held_out, text_of
from tp2d_data.hub import HubSource, HubStream, is_hub_name
from tp2d_data.records import Record

# Names the tutorials use for what the hub now keeps elsewhere, with the configuration they mean.
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
    """What to read, in the words of the options; checks itself, reads nothing."""

    dataset_name: str
    dataset_config: str | None = None
    split: str = "train"
    task: Task = field(default_factory=Task)
    dataset_percentage: float = 10.0
    part: Literal["train", "eval"] = "train"
    holdout: float = 0.0
    streaming: bool = False
    cache_dir: str | Path | None = None

    def __post_init__(self) -> None:
        if not self.dataset_name:
            raise ValueError("dataset_name is empty; give a hub name, a local file or folder, or builtin:stdlib")
        if not (math.isfinite(self.dataset_percentage) and 0 < self.dataset_percentage <= 100):
            raise ValueError(f"dataset_percentage must be above 0 and at most 100, not {self.dataset_percentage}")
        if not 0 <= self.holdout < 1:
            raise ValueError(f"holdout must be at least 0 and below 1, not {self.holdout}")
        if self.part not in ("train", "eval"):
            raise ValueError(f"part must be train or eval, not '{self.part}'")


@dataclass(frozen=True, kw_only=True)
class Documents:
    """The records of a corpus, iterable again and again: the first p % of a split, less the other part's share."""

    source: Source
    split: str
    task: Task
    percentage: float
    held_out_share: float  # 0: the part is the whole split
    wants_held_out: bool

    def __iter__(self) -> Iterator[Record]:
        return self.records()

    def records(self, start: int = 0) -> Iterator[Record]:
        """The part's records from the `start`-th of the split on; what is before it is skipped and not parsed."""
        return (record for _, record in self.numbered(start)) if self.held_out_share else self._read(start)

    def numbered(self, start: int = 0) -> Iterator[tuple[int, Record]]:
        """As `records`, each after its number in the split, so that `numbered(number + 1)` goes on after it."""
        numbered = zip(count(start), self._read(start), strict=False)
        if not self.held_out_share:
            return numbered
        return (pair for pair in numbered if self._is_wanted(pair[1]))

    def identity(self) -> Any:
        """JSON that changes when the records or what is read of them may have changed."""
        chosen = [self.task.identity(), self.percentage, self.held_out_share, self.wants_held_out]
        return [self.source.identity(self.split), *chosen]

    def _read(self, start: int) -> Iterator[Record]:
        records = self.source.records(self.split, self.task.fields, start)
        return records if self._limit is None else islice(records, max(0, self._limit - start))

    @cached_property
    def _limit(self) -> int | None:
        return None if self.percentage == 100 else round(self.source.count(self.split) * self.percentage / 100)

    def _is_wanted(self, record: Record) -> bool:
        return is_held_out(text_of(record.values), self.held_out_share) == self.wants_held_out


def open_corpus(corpus: Corpus) -> Documents:
    """Finds the documents of `corpus` and checks what can be checked quickly.

    Raises:
        ValueError: no such dataset, configuration, split or field; an empty split; nothing to evaluate on.
    """
    source = _open_source(corpus)
    split, share = _choose_split(corpus, source)
    source.check(split, corpus.task.fields)
    if corpus.dataset_percentage < 100 and isinstance(source, HubStream):
        source.count(split)
    return Documents(
        source=source,
        split=split,
        task=corpus.task,
        percentage=corpus.dataset_percentage,
        held_out_share=share,
        wants_held_out=corpus.part == "eval",
    )


def check_source(corpus: Corpus) -> None:
    """Raises what `create_dataloader` would raise about the dataset, in a moment and without tokenising it.

    A hub name costs one question to the hub and the reading of the dataset's card.

    Raises:
        ValueError: no such dataset, configuration, split or field; an empty split; nothing to evaluate on; a
            percentage of a stream whose size nobody knows; the hub does not answer and the dataset is not cached.
    """
    open_corpus(corpus)


def _open_source(corpus: Corpus) -> Source:
    name, config = corpus.dataset_name, corpus.dataset_config
    if name.startswith("builtin:"):
        if name != stdlib.NAME:
            raise ValueError(f"dataset '{name}' is unknown; the only built-in one is {stdlib.NAME}")
        if config is not None:
            raise ValueError(f"dataset {name} has no configurations; leave dataset_config out")
        return stdlib.StdlibSource(corpus.cache_dir)
    path = Path(name).expanduser()
    if path.exists():
        # What is too large to be read before the first step is not read for its name either.
        return FilesSource(_configured(path, config), cache_dir=corpus.cache_dir, by_content=not corpus.streaming)
    if not is_hub_name(name) or is_data_name(path):
        raise ValueError(f"dataset {name} does not exist; give a hub name, a local file or folder, or {stdlib.NAME}")
    name = _ALIASES.get(name, name)
    return (HubStream if corpus.streaming else HubSource)(name, config or _DEFAULT_CONFIGS.get(name))


def _configured(path: Path, config: str | None) -> Path:
    """A configuration of a local dataset is a folder in it, as in a copy of a hub repository."""
    if config is None or (path / config).is_dir():
        return path / (config or "")
    folders = sorted(folder.name for folder in path.glob("*/") if not folder.name.startswith("."))
    raise ValueError(
        f"dataset {path} has no folder for dataset_config '{config}'; it has {', '.join(folders) or 'no folders'}"
    )


def _choose_split(corpus: Corpus, source: Source) -> tuple[str, float]:
    """The split to read and the share of it that is held out.

    A validation split of the dataset's own is what is evaluated on; only without one is a share of the training split.
    """
    splits = source.splits()
    if corpus.split not in splits:
        raise ValueError(f"dataset {source.name} has no split '{corpus.split}'; it has {', '.join(splits)}")
    if corpus.split != "validation" and "validation" in splits:
        return (corpus.split if corpus.part == "train" else "validation"), 0.0
    if corpus.part == "eval" and not corpus.holdout:
        raise ValueError(
            f"dataset {source.name} has no validation split and holdout is 0, so there is nothing to evaluate on; "
            "set holdout, such as 0.05"
        )
    return corpus.split, corpus.holdout
