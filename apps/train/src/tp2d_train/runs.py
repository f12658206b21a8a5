"""A run's folder and name, and what it means to start one under a name that exists.

A start that is refused leaves nothing behind.
"""

import dataclasses
import fcntl
import json
import os
import re
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tp2d_train.config import TrainConfig, option_fields
from tp2d_train.fields import text_of
from tp2d_train.folder import RunFolder, replace_file
from tp2d_train.options import command_line, read_yaml


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One start of a run: where it lives, what it does, what was there before.

    Args:
        config: the configuration, with `name` set and `storage_path` absolute.
        previous: the configuration of the last start under this name, None for a new run.
        finished: whether the run has already reached the length that `config` asks for.
    """

    config: TrainConfig
    previous: TrainConfig | None = None
    finished: bool = False

    @property
    def folder(self) -> RunFolder:
        """Where the run's files are."""
        return RunFolder(Path(self.config.storage_path) / str(self.config.name))

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self.folder.path

    def start(self) -> None:
        """Writes the resolved configuration in place of an older one, and removes an old request to stop."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.folder.stop.unlink(missing_ok=True)
        text = yaml.safe_dump(self.config.as_dict(), sort_keys=False, allow_unicode=True)
        replace_file(self.folder.config, f"# resume: {self.resume_command()}\n{text}".encode())

    def resume_command(self) -> str:
        """The command that starts this run again, from the folder it was started in."""
        skipped = ("engine", "name", "num_workers", "global_batch_size", "resume", "storage_path")
        usual = TrainConfig(model_name=self.config.model_name).as_dict() | {"model_name": TrainConfig().model_name}
        settings = {n: v for n, v in self.config.as_dict().items() if n not in skipped and v != usual[n]}
        storage = os.path.relpath(self.config.storage_path)
        named = {"name": self.config.name} | ({"storage_path": storage} if storage != usual["storage_path"] else {})
        return f"{_entry_point(self.config.engine)} {command_line({**settings, **named})}"

    def summary(self) -> dict[str, Any]:
        """The contents of `summary.json`, empty where there is none yet."""
        return _read_summary(self.folder)

    def start_message(self) -> str:
        """What the driver says before the workers start: where the run is, and how it is resumed."""
        return f"{'resuming' if self.previous else 'run'} {self.path}\nresume with: {self.resume_command()}"

    def finished_message(self) -> str:
        """What the driver says where there is nothing left to do."""
        config, summary = self.config, self.summary()
        limit = f", max_steps {config.max_steps}" if config.max_steps else ""
        return (
            f"run {config.name!r} is finished: step {summary['step']} of num_epochs {config.num_epochs}{limit}, in "
            f"{self.path}; more --num-epochs{' or --max-steps' if limit else ''} goes on (the learning rate then "
            "follows the longer schedule), another --name starts anew"
        )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the run for this process; the system lets go of it however the process ends.

        Raises:
            ValueError: another process holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with self.folder.lock.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"run {self.config.name!r} is being trained by another process now") from None
            yield


def find_run(config: TrainConfig) -> Run:
    """The run that `config` asks for, by the rules of `resume`; reads only.

    Raises:
        ValueError: the storage path cannot be written, the name is no folder name, or its run may not be resumed so.
    """
    storage = check_storage(config.storage_path)
    name = config.name
    if name is None:
        if config.resume == "must":
            raise ValueError("--resume must needs --name: a run without a name is a new one")
        return Run(config=dataclasses.replace(config, name=new_name(config), storage_path=str(storage)))
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", name):
        raise ValueError(f"name {name!r} must be letters, digits, '.', '_' and '-': it names a folder")
    config = dataclasses.replace(config, storage_path=str(storage))
    folder = RunFolder(storage / name)
    previous = _previous(folder)
    if previous is None:
        if config.resume == "must":
            raise ValueError(f"nothing to resume: {storage} has no run {name!r} (--resume must)")
        return Run(config=config)
    if config.resume == "must" and not folder.checkpoints.is_dir():
        raise ValueError(f"nothing to resume: run {name!r} in {storage} has not saved yet (--resume must)")
    if config.resume == "never":
        raise ValueError(f"run {name!r} exists in {storage} (--resume never): choose another --name")
    check_unchanged(previous, config)
    return Run(config=config, previous=previous, finished=_finished(folder, config))


def check_storage(storage_path: str) -> Path:
    """The absolute path of a folder that can be written, tried with a real file.

    Raises:
        ValueError: it is no folder of this machine's file systems, or a file cannot be written there.
    """
    if "://" in storage_path:
        raise ValueError(f"storage_path {storage_path!r} must be a folder that every node sees, not an address")
    path = Path(os.path.abspath(Path(storage_path).expanduser()))  # noqa: PTH100 (links stay as they are)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path, prefix=".probe-") as probe:
            probe.write(b"tp2d")
            probe.flush()
    except OSError as error:
        raise ValueError(f"storage_path {path} cannot be written: {error.strerror}; choose --storage-path") from None
    return path


def check_unchanged(old: TrainConfig, new: TrainConfig) -> None:
    """Refuses settings that would make a resumed run another run.

    Raises:
        ValueError: the names of the changed settings with both values.
    """
    names = [field.name for field in option_fields() if field.metadata["fixed"]]
    changed = [name for name in names if getattr(old, name) != getattr(new, name)]
    if changed:
        pairs = ", ".join(f"{name} {text_of(getattr(old, name))} -> {text_of(getattr(new, name))}" for name in changed)
        raise ValueError(
            f"run {new.name!r} cannot be resumed with other settings ({pairs}): "
            "set them back, or choose another --name for a new run"
        )


def new_name(config: TrainConfig) -> str:
    """A name that no run has: the time, the model, the mesh and chance, e.g. `20260131-142501-tiny-2x2-3fa9`."""
    model = re.sub(r"[^A-Za-z0-9._]+", "-", re.split(r"[/:]", config.model_name.rstrip("/"))[-1]).strip("-.") or "model"
    mesh = f"{config.dp_size}x{config.tp_size}"
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{model}-{mesh}-{secrets.token_hex(2)}"


def _read_summary(folder: RunFolder) -> dict[str, Any]:
    return json.loads(folder.summary.read_text(encoding="utf-8")) if folder.summary.exists() else {}


def _entry_point(engine: str) -> str:
    """How a user of this environment starts the program: hatch sets its variable in the environments it activates."""
    hatch = os.environ.get("HATCH_ENV_ACTIVE") == "apps/train"
    return f"hatch run apps/train:{engine}" if hatch else f"python -m tp2d_train --engine {engine}"


def _previous(folder: RunFolder) -> TrainConfig | None:
    """The configuration of the last start of the run in `folder`, None where there is no run."""
    path = folder.path
    if folder.config.exists():
        try:
            return TrainConfig(**read_yaml(folder.config))
        except ValueError as error:
            raise ValueError(f"run {path.name!r} cannot be resumed, its configuration is damaged: {error}") from None
    if path.is_dir() and any(child != folder.lock for child in path.iterdir()):
        raise ValueError(f"{path} exists and is not a run of this program: choose another --name")
    return None


def _finished(folder: RunFolder, config: TrainConfig) -> bool:
    """Whether the run has ended at or beyond the length that `config` asks for."""
    summary = _read_summary(folder)
    steps_done = config.max_steps is not None and summary.get("step", 0) >= config.max_steps
    return bool(summary.get("finished")) and (steps_done or summary["epoch"] >= config.num_epochs)
