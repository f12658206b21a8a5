"""Datasets of the Hugging Face hub, and the question whether the hub answers.

The hub's own libraries retry for half a minute where there is no network. So the hub is asked once, briefly, and
where it does not answer only what is cached locally is looked at.
"""

import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from tp2d_data.files import as_text

PROBE_SECONDS = 3.0


def hub_reachable(name: str, *, kind: Literal["model", "dataset"]) -> bool:
    """Whether the hub answers about the model or dataset `name`; asks once and waits 3 seconds at most.

    With `HF_HUB_OFFLINE=1` nothing is asked and the answer is False.

    Raises:
        ValueError: the hub answers that there is no such name, or not for this user.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    status = _within(PROBE_SECONDS, f"{constants.ENDPOINT}/api/{kind}s/{name}")
    if status in (401, 403, 404):
        raise ValueError(
            f"{kind} '{name}' is neither a local path nor found on {constants.ENDPOINT} (status {status}); "
            "if it is private or gated, log in with `hf auth login`"
        )
    return status is not None


def unreachable(name: str, *, kind: Literal["model", "dataset"]) -> ValueError:
    """The error to raise for a name that needs the hub where the hub does not answer."""
    from huggingface_hub import constants

    return ValueError(
        f"{kind} '{name}' is neither a local path nor in the local cache, and the hub {constants.ENDPOINT} "
        "cannot be reached; give a local path instead"
    )


def _within(seconds: float, url: str) -> int | None:
    # A thread, because no time-out of a socket covers the look-up of the host's name.
    answer: list[int] = []
    thread = threading.Thread(target=lambda: answer.extend(_status(url, seconds)), daemon=True)
    thread.start()
    thread.join(seconds)
    return answer[0] if answer else None


def _status(url: str, seconds: float) -> list[int]:
    from huggingface_hub import get_token

    token = get_token()  # huggingface_hub's own headers would ask the hub something first
    headers = {"User-Agent": "tp2d-data"} | ({"Authorization": f"Bearer {token}"} if token else {})
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=seconds) as response:
            return [response.status]
    except urllib.error.HTTPError as error:
        return [error.code]
    except OSError:
        return []


@contextmanager
def offline() -> Iterator[None]:
    """Keeps the hub's libraries off the network, as HF_HUB_OFFLINE=1 does where it is set before they are imported.

    Their `local_files_only` is not enough: huggingface_hub 2.4 still asks the hub about the programs it is used by.
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
    """A dataset of the hub, or what is cached of it where the hub does not answer."""

    def __init__(self, name: str, config: str | None) -> None:
        self.name = name
        self._builder = _load_builder(name, config)

    def splits(self) -> tuple[str, ...]:
        known = self._builder.info.splits or self._builder.config.data_files or self._prepared.info.splits
        return tuple(map(str, known))

    def check(self, split: str, field: str) -> None:
        features = self._builder.info.features
        if features is not None and field not in features:
            raise ValueError(
                f"dataset {self.name} has no field '{field}'; it has {', '.join(features)}: choose one with text_field"
            )

    def identity(self, split: str) -> Any:
        # Configuration, version and the hub's commit: equal whether the hub answers or the cache does.
        return [self.name, *Path(self._builder.cache_dir).parts[-3:], split]

    def count(self, split: str) -> int:
        return len(self._rows(split))

    def texts(self, split: str, field: str) -> Iterator[str]:
        self.check(split, field)
        rows = self._rows(split).select_columns([field])
        values = (value for batch in rows.iter(batch_size=1024) for value in batch[field])
        return (as_text(f"{self.name}, row {number}", field, value) for number, value in enumerate(values, 1))

    def _rows(self, split: str) -> Any:
        return self._prepared.as_dataset(split=split)

    @cached_property
    def _prepared(self) -> Any:
        self._builder.download_and_prepare()
        return self._builder


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
    """Whether `name` reads like one of the hub: `name` or `owner/name`."""
    parts = name.split("/")
    return len(parts) <= 2 and all(part and part[0] not in ".~" for part in parts) and not Path(name).is_absolute()
