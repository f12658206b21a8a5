"""From a dataset's name to its documents: built-in, local or of the hub; a share of them; to train or to evaluate."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

from tp2d_data import stdlib
from tp2d_data.files import FORMATS, FilesSource
from tp2d_data.holdout import is_held_out
from tp2d_data.hub import HubSource, is_hub_name

# Names the tutorials use for what the hub now keeps elsewhere, with the configuration they mean.
_ALIASES = {"wikitext": "Salesforce/wikitext"}
_DEFAULT_CONFIGS = {"Salesforce/wikitext": "wikitext-2-raw-v1"}


class Source(Protocol):
    """Documents by split. `check` raises ValueError for what can be known to be wrong without reading everything."""

    name: str

    def splits(self) -> tuple[str, ...]: ...
    def check(self, split: str, field: str) -> None: ...
    def identity(self, split: str) -> Any: ...  # JSON that changes when the documents may have changed
    def count(self, split: str) -> int: ...
    def texts(self, split: str, field: str) -> Iterator[str]: ...


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """What to read, in the words of the options; checks itself, reads nothing."""

    dataset_name: str
    dataset_config: str | None = None
    split: str = "train"
    text_field: str = "text"
    dataset_percentage: float = 10.0
    part: Literal["train", "eval"] = "train"
    holdout: float = 0.0
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
    """The documents of a corpus, iterable again and again: the first p % of a split, less the other part's share."""

    source: Source
    split: str
    text_field: str
    percentage: float
    held_out_share: float  # 0: the part is the whole split
    wants_held_out: bool

    def __iter__(self) -> Iterator[str]:
        texts = self.source.texts(self.split, self.text_field)
        if self.percentage < 100:
            texts = islice(texts, round(self.source.count(self.split) * self.percentage / 100))
        if not self.held_out_share:
            return texts
        return (text for text in texts if is_held_out(text, self.held_out_share) == self.wants_held_out)

    def identity(self) -> Any:
        """JSON that changes when the documents may have changed."""
        chosen = [self.text_field, self.percentage, self.held_out_share, self.wants_held_out]
        return [self.source.identity(self.split), *chosen]


def open_corpus(corpus: Corpus) -> Documents:
    """Finds the documents of `corpus` and checks what can be checked quickly.

    Raises:
        ValueError: no such dataset, configuration, split or field; an empty split; nothing to evaluate on.
    """
    source = _open_source(corpus)
    split, share = _choose_split(corpus, source)
    source.check(split, corpus.text_field)
    return Documents(
        source=source,
        split=split,
        text_field=corpus.text_field,
        percentage=corpus.dataset_percentage,
        held_out_share=share,
        wants_held_out=corpus.part == "eval",
    )


def check_source(
    dataset_name: str,
    *,
    dataset_config: str | None = None,
    split: str = "train",
    text_field: str = "text",
    dataset_percentage: float = 10.0,
    part: Literal["train", "eval"] = "train",
    holdout: float = 0.0,
) -> None:
    """Raises what `create_dataloader` would raise about the dataset, in a moment and without tokenising it.

    The arguments are those of `create_dataloader`. A hub name costs one question to the hub and the reading of the
    dataset's card.

    Raises:
        ValueError: no such dataset, configuration, split or field; an empty split; a percentage or holdout out of
        range;
            nothing to evaluate on; the hub does not answer and the dataset is not cached.
    """
    open_corpus(
        Corpus(
            dataset_name=dataset_name,
            dataset_config=dataset_config,
            split=split,
            text_field=text_field,
            dataset_percentage=dataset_percentage,
            part=part,
            holdout=holdout,
        )
    )


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
        return FilesSource(_configured(path, config))
    if not is_hub_name(name) or path.suffix in FORMATS:
        raise ValueError(f"dataset {name} does not exist; give a hub name, a local file or folder, or {stdlib.NAME}")
    name = _ALIASES.get(name, name)
    return HubSource(name, config or _DEFAULT_CONFIGS.get(name))


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
