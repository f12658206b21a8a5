"""What lies where in a run's folder, `<storage_path>/<name>/`, and how a file in it is replaced."""

import dataclasses
import os
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """The files of one run; neither the folder nor a file need exist yet.

    Args:
        path: the folder.
    """

    path: Path

    @property
    def config(self) -> Path:
        """Every setting, resolved. This file makes the folder a run: it is written before the first worker starts."""
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        """The folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        """A line for each logged step and each evaluation."""
        return self.path / "metrics.jsonl"

    @property
    def summary(self) -> Path:
        """What trained, how far, how well and how fast."""
        return self.path / "summary.json"

    @property
    def plot(self) -> Path:
        """The picture of the losses."""
        return self.path / "loss.png"

    @property
    def events(self) -> Path:
        """What the workers tell the driver's view."""
        return self.path / ".events.jsonl"

    @property
    def failure(self) -> Path:
        """The cause and the traceback of the last failure."""
        return self.path / "failure.log"

    @property
    def ray_log(self) -> Path:
        """What Ray prints on the driver."""
        return self.path / "ray.log"

    @property
    def stop(self) -> Path:
        """Exists while somebody asks the workers to save and leave."""
        return self.path / ".stop"

    @property
    def lock(self) -> Path:
        """Locked by the driver while it trains."""
        return self.path / ".lock"


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file in one move: after a kill it is the old one or the new one, and it is on the disk on return."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
