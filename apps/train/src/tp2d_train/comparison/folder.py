"""What lies where in a comparison's folder, `<storage_path>/<name>/`, beside the folders of its runs."""

import dataclasses
import json
import os
import secrets
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tp2d_train.comparison.settings import Settings
from tp2d_train.config import TrainConfig
from tp2d_train.report.metrics import write_json
from tp2d_train.runs.folder import RunFolder

if TYPE_CHECKING:
    from tp2d_train.comparison.rows import Row


@dataclasses.dataclass(frozen=True)
class ComparisonFolder:
    """The files of one comparison; neither the folder nor a file need exist yet.

    Args:
        path: the folder, absolute.
    """

    path: Path

    @classmethod
    def at(cls, storage_path: str, name: str | None) -> "ComparisonFolder":
        """The folder of a name; without one, a new one.

        Raises:
            ValueError: the name cannot be that of a folder.
        """
        if name is None:
            name = f"compare-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
        if Path(name).name != name or name.startswith((".", "-")):
            raise ValueError(f"name {name!r} cannot name a folder: choose letters, digits, '.', '_' and '-'")
        return cls(Path(os.path.abspath(Path(storage_path).expanduser() / name)))  # noqa: PTH100 (links stay)

    @property
    def json(self) -> Path:
        """The settings and the rows. This file makes the folder a comparison: it is written before the first run."""
        return self.path / "comparison.json"

    @property
    def table(self) -> Path:
        """The table as Markdown."""
        return self.path / "comparison.md"

    @property
    def picture(self) -> Path:
        """The picture."""
        return self.path / "compare.png"

    @property
    def next(self) -> Path:
        """The options of the run that is started next."""
        return self.path / ".next.yaml"

    def run(self, name: str) -> RunFolder:
        """The folder of one of its runs."""
        return RunFolder(self.path / name)

    def command(self) -> str:
        """The command that goes on with this comparison, from this process's folder."""
        storage = os.path.relpath(self.path.parent)
        place = "" if storage == TrainConfig.storage_path else f" --storage-path {shlex.quote(storage)}"
        return f"tp2d compare --name {self.path.name}{place}"

    def settings(self) -> Settings | None:
        """Those of the comparison that is here; None where there is none.

        Raises:
            ValueError: the folder is something else, or its file is damaged.
        """
        if not self.json.exists():
            if RunFolder(self.path).config.exists() or RunFolder(self.path).has_other_files():
                raise ValueError(f"{self.path} exists and is no comparison: choose another --name")
            return None
        try:
            return Settings.from_json(json.loads(self.json.read_text(encoding="utf-8"))["settings"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{self.json} is damaged ({error}): choose another --name") from None

    def write(self, settings: Settings, rows: "Sequence[Row]", *, environment: Mapping[str, Any]) -> None:
        """Replaces the JSON file in one move.

        Args:
            settings: of the comparison.
            rows: of all its runs.
            environment: what they computed on, by name.
        """
        values = {"settings": dataclasses.asdict(settings), "environment": environment}
        write_json(self.json, {**values, "rows": [dataclasses.asdict(row) for row in rows]})


def find_settings(folder: ComparisonFolder, given: Mapping[str, Any]) -> Settings:
    """The settings that a command line means for the comparison in `folder`.

    Raises:
        ValueError: as `Settings.of`, or the comparison that is there has others.
    """
    stored = folder.settings()
    settings = Settings.of(given, stored=stored)
    if stored is not None and (changes := stored.changes(settings)):
        raise ValueError(
            f"comparison {folder.path.name!r} cannot go on with other settings ({changes}): set them back, or choose "
            "another --name for a new one"
        )
    return settings
