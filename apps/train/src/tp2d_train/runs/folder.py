"""What lies where in a run's folder, `<storage_path>/<name>/`, and how a file in it is replaced."""

import dataclasses
import os
import shutil
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
    def profile(self) -> Path:
        """The folder of what was recorded of a few steps: traces, tables, snapshots of memory."""
        return self.path / "profile"

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
        """Locked by the driver while it trains, which this machine's processes see."""
        return self.path / ".lock"

    @property
    def holder(self) -> Path:
        """Who trains the run now, rewritten every few seconds, which other machines see."""
        return self.path / ".holder.json"

    def has_checkpoint(self) -> bool:
        """Whether a save was committed here: its folder has the mark of `tp2d_ckpt`, which is not loaded for this."""
        return any(self.checkpoints.glob("step-*/COMPLETE"))

    def has_other_files(self) -> bool:
        """Whether there is more here than a start leaves that was killed before it wrote `config.yaml`."""
        first = {path.name for file in (self.lock, self.holder, self.config) for path in (file, _temporary(file))}
        return self.path.is_dir() and any(path.name not in first for path in self.path.iterdir())

    def clear(self) -> None:
        """Removes what a start has left that never saved, but `config.yaml` and the lock; what is not ours stays.

        Ray's list of the run's checkpoints, which is empty, goes too.
        """
        for file in (self.metrics, self.summary, self.plot, self.events, self.failure, self.ray_log, self.stop):
            file.unlink(missing_ok=True)
            _temporary(file).unlink(missing_ok=True)
        for file in self.path.glob("checkpoint_manager_snapshot.json*"):
            file.unlink()
        shutil.rmtree(self.profile, ignore_errors=True)
        for unfinished in self.checkpoints.glob("step-*"):
            shutil.rmtree(unfinished)
        if self.checkpoints.is_dir() and not any(self.checkpoints.iterdir()):
            self.checkpoints.rmdir()


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file in one move: after a kill it is the old one or the new one, and it is on the disk on return."""
    temporary = _temporary(path)
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")
