"""Datasets of the Hugging Face hub, and the question whether the hub answers.

Without a network, the hub's own libraries retry for half a minute. So the hub is asked once and briefly; where it does
not answer, only the local cache is used.
"""

import logging
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, Literal

from tp2d_data.progress import Progress, told
from tp2d_data.sources.records import Record, require_fields
from tp2d_data.storage import cache_root, hash_of, locked, require_writable

logger = logging.getLogger(__name__)

PROBE_SECONDS = 3.0
_ROWS = 1024  # of a batch


def hub_reachable(name: str, *, kind: Literal["model", "dataset"]) -> bool:
    """Whether the hub answers about the model or dataset `name`. Asks once and waits 3 seconds at most.

    With `HF_HUB_OFFLINE=1` nothing is asked and the answer is False.

    Raises:
        ValueError: the hub has no such name, or refuses it to this user.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    status = _status(f"{constants.ENDPOINT}/api/{kind}s/{name}")
    if status in (401, 403, 404):
        raise ValueError(
            f"{kind} '{name}' is neither a local path nor found on {constants.ENDPOINT} (status {status}); "
            "if it is private or gated, log in with `hf auth login`"
        )
    return status is not None


def unreachable(name: str, *, kind: Literal["model", "dataset"]) -> ValueError:
    """The error for a name that is not cached where the hub does not answer."""
    from huggingface_hub import constants

    return ValueError(
        f"{kind} '{name}' is neither a local path nor in the local cache, and the hub {constants.ENDPOINT} "
        "cannot be reached; give a local path instead"
    )


def _status(url: str) -> int | None:
    """The status of the hub's answer about `url`; None where none comes in time."""
    from huggingface_hub import get_session, get_token

    answer: list[int] = []

    def ask() -> None:
        # Any failure means no answer. Its class is not known: versions of huggingface_hub use different HTTP libraries.
        with suppress(Exception):
            # Headers of our own: huggingface_hub's would first ask the hub for a list of programs that call it.
            token = get_token()
            headers = {"user-agent": "tp2d-data"} | ({"authorization": f"Bearer {token}"} if token else {})
            with get_session().stream("GET", url, headers=headers, timeout=PROBE_SECONDS) as response:
                answer.append(response.status_code)

    # A thread, because no time-out of a connection covers the look-up of the host's name.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(PROBE_SECONDS)
    return answer[0] if answer else None


@contextmanager
def offline() -> Iterator[None]:
    """Keeps the hub's libraries off the network, as HF_HUB_OFFLINE=1 does if it is set before they are imported.

    Their `local_files_only` is not enough: huggingface_hub 2.4 still asks the hub for a list of programs that call it.
    """
    from huggingface_hub import constants

    switches: list[Any] = [constants, *filter(None, [sys.modules.get("datasets.config")])]
    before = [switch.HF_HUB_OFFLINE for switch in switches]
    for switch in switches:
        switch.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.HF_HUB_OFFLINE = value


def one_line(error: Exception) -> str:
    """The message of a library's error without its line breaks."""
    return " ".join(str(error).split())


class HubSource:
    """A dataset of the hub; where the hub does not answer, its local cache.

    Args:
        name: on the hub.
        config: of its configurations.
        cache_dir: where the lock is that lets one process of a machine download.
        progress: is told, by the process that downloads, that it does.
    """

    def __init__(
        self,
        name: str,
        config: str | None,
        *,
        cache_dir: str | Path | None = None,
        progress: Progress = logger.info,
    ) -> None:
        self.name = name
        self._cache_dir = cache_dir
        self._progress = progress
        self._builder = _load_builder(name, config)

    def splits(self) -> tuple[str, ...]:
        known = self._builder.info.splits or self._builder.config.data_files or self._prepared.info.splits
        return tuple(map(str, known))

    def check(self, split: str, fields: tuple[str, ...]) -> None:
        features = self._builder.info.features
        if features is not None:
            require_fields(f"dataset {self.name}", fields, features)

    def identity(self, split: str) -> Any:
        # Configuration, version and the hub's commit are the same whether the hub or the cache answers.
        return [self.name, *Path(self._builder.cache_dir).parts[-3:], split]

    def size(self, split: str) -> int | None:
        return None

    def count(self, split: str) -> int:
        return len(self._rows(split))

    def records(self, split: str, fields: tuple[str, ...], start: int = 0) -> Iterator[Record]:
        rows = self._rows(split)
        require_fields(f"dataset {self.name}", fields, rows.column_names)
        rows = rows.select_columns(list(dict.fromkeys(fields)))
        batches = (rows[begin : begin + _ROWS] for begin in range(start, len(rows), _ROWS))
        return _records(self.name, fields, batches, start)

    def _rows(self, split: str) -> Any:
        return self._prepared.as_dataset(split=split)

    @cached_property
    def _prepared(self) -> Any:
        lock = cache_root(self._cache_dir) / "downloads" / f"{hash_of(str(self._builder.cache_dir))}.lock"
        require_writable(lock.parent)
        with locked(lock), told(self._progress, f"downloading dataset {self.name}"):
            self._builder.download_and_prepare()
        return self._builder


class HubStream(HubSource):
    """A dataset of the hub that is read over the network while it is used, and never kept on this machine's disk.

    It has the same identity as the downloaded dataset, because its records are the same in the same order.
    """

    def splits(self) -> tuple[str, ...]:
        known = self._builder.info.splits or self._builder.config.data_files or self._builder.as_streaming_dataset()
        return tuple(map(str, known))

    def count(self, split: str) -> int:
        known = self._builder.info.splits or {}
        rows = known[split].num_examples if split in known else None
        if not rows:
            raise ValueError(
                f"dataset {self.name} is streamed, and the hub does not say how many rows its split '{split}' has; "
                "set dataset_percentage to 100, or streaming to false"
            )
        return rows

    def records(self, split: str, fields: tuple[str, ...], start: int = 0) -> Iterator[Record]:
        """Rows that are skipped are read but not decoded; `skip` of `datasets` does no better."""
        return _records(self.name, fields, self._batches(split, start), start)

    def _batches(self, split: str, start: int) -> Iterator[Mapping[str, list[Any]]]:
        read = start
        try:
            for batch in self._builder.as_streaming_dataset(split=split).skip(start).iter(batch_size=_ROWS):
                yield batch
                read += len(next(iter(batch.values())))
        except Exception as error:  # the network, the file system above it and the format each have their own errors
            raise ValueError(
                f"dataset {self.name}, streamed, after row {read}: cannot be read ({type(error).__name__}: "
                f"{one_line(error)}); the hub must be reachable, or set streaming to false where the dataset is cached"
            ) from error


def _records(
    name: str, fields: tuple[str, ...], batches: Iterable[Mapping[str, list[Any]]], start: int
) -> Iterator[Record]:
    numbers = count(start + 1)
    for batch in batches:
        require_fields(f"dataset {name}", fields, batch)
        for values, number in zip(zip(*(batch[field] for field in fields), strict=True), numbers, strict=False):
            yield Record(f"{name}, row {number}", values)


def _load_builder(name: str, config: str | None) -> Any:
    online = hub_reachable(name, kind="dataset")
    import datasets

    with nullcontext() if online else offline():
        try:
            return datasets.load_dataset_builder(name, config)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and not online:  # nothing of it is cached
                raise unreachable(name, kind="dataset") from error
            raise ValueError(f"dataset '{name}', dataset_config {config!r}: {one_line(error)}") from error


def is_hub_name(name: str) -> bool:
    """Whether `name` has the form of a hub name: `name` or `owner/name`."""
    parts = name.split("/")
    return len(parts) <= 2 and all(part and part[0] not in ".~" for part in parts) and not Path(name).is_absolute()
