"""The runs of a storage folder by their names, for the commands that read them."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from tp2d_train.config import TrainConfig
from tp2d_train.fields import check_fields, option
from tp2d_train.names import meant
from tp2d_train.runs.folder import RunFolder

_CONFIG = RunFolder(Path()).config.name


@dataclass(frozen=True, kw_only=True)
class StorageOptions:
    """The option by which a command finds runs; checks itself, with the options of a class below."""

    storage_path: str = option(TrainConfig.storage_path, "folder that holds the runs")

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class RunOptions(StorageOptions):
    """The options by which a command finds a run."""

    name: str = option("", "name of the run", positional=True)


def folders(storage_path: str) -> list[RunFolder]:
    """The folders of the runs in `storage_path`; none where it does not exist."""
    return [RunFolder(file.parent) for file in sorted(Path(storage_path).expanduser().glob(f"*/{_CONFIG}"))]


def find_folder(name: str, storage_path: str) -> RunFolder:
    """The folder of the run `name`.

    Raises:
        ValueError: there is none; the run that was meant is named.
    """
    storage = Path(storage_path).expanduser()
    folder = RunFolder(storage / name)
    if not folder.config.is_file():
        known = [found.path.name for found in folders(storage_path)]
        place = "" if storage_path == TrainConfig.storage_path else f" --storage-path {shlex.quote(storage_path)}"
        hint = meant(name, known, see=f"tp2d runs{place}")
        raise ValueError(f"there is no run {name!r} in {storage.absolute()}; {hint}")
    return folder
