"""A run's folder and name, and what it means to start one under a name that exists.

A start that is refused leaves nothing behind.
"""

import dataclasses
import json
import os
import re
import secrets
import shlex
import tempfile
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import yaml

from tp2d_train.config import TrainConfig
from tp2d_train.runs.folder import RunFolder, replace_file
from tp2d_train.runs.hold import held
from tp2d_train.runs.stored import difference, overlaid, read_stored

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One start of a run: where it lives, what it does, what was there before.

    Args:
        config: the configuration, with `name` set and `storage_path` absolute.
        previous: the configuration of the last start of a run that has saved, None for a new run. A start that has
            never saved counts for nothing: its name is free.
        finished: whether the run has already reached the length that `config` asks for.
        warnings: what a user should know before it starts.
    """

    config: TrainConfig
    previous: TrainConfig | None = None
    finished: bool = False
    warnings: tuple[str, ...] = ()

    @property
    def folder(self) -> RunFolder:
        """Where the run's files are."""
        return RunFolder(Path(self.config.storage_path) / str(self.config.name))

    @property
    def path(self) -> Path:
        """The run's folder."""
        return self.folder.path

    def start(self) -> None:
        """Writes the resolved configuration in place of an older one, and removes an old request to stop.

        Of a start that never saved nothing is left. The caller holds the run.

        Raises:
            ValueError: somebody else has started the run since it was looked for.
        """
        if _previous(self.folder) != self.previous:
            raise ValueError(f"run {self.config.name!r} was started by somebody else meanwhile: start again")
        self.path.mkdir(parents=True, exist_ok=True)
        if self.previous is None:
            self.folder.clear()
        self.folder.stop.unlink(missing_ok=True)
        text = yaml.safe_dump(self.config.as_dict(), sort_keys=False, allow_unicode=True)
        replace_file(self.folder.config, f"# resume: {self.resume_command()}\n{text}".encode())

    def resume_command(self) -> str:
        """The command that resumes this run once it has saved, from the folder it was started in."""
        storage = os.path.relpath(self.config.storage_path)
        place = "" if storage == TrainConfig.storage_path else f" --storage-path {shlex.quote(storage)}"
        hatch = _hatch_command(self.config.engine)
        return f"{f'{hatch} --name' if hatch else 'tp2d resume'} {self.config.name}{place}"

    def next_command(self) -> str:
        """What a run that has ended too early says: the command that goes on, or that starts again."""
        if self.folder.has_checkpoint():
            return f"resume with: {self.resume_command()}"
        train = _hatch_command(self.config.engine) or "tp2d train"
        file = shlex.quote(os.path.relpath(self.folder.config))
        return f"nothing was saved, start again with: {train} --config {file}"

    def summary(self) -> dict[str, Any]:
        """The contents of `summary.json`, empty where there is none yet."""
        return read_summary(self.folder)

    def start_message(self) -> str:
        """What the driver says before the workers start: where the run is, what is new, and how it is resumed."""
        first = f"run {self.path}"
        if self.previous is not None:
            changes = difference(self.previous, self.config, fixed=False)
            first = f"resuming {self.path}{f' with {changes}' if changes else ''}"
        warnings = [f"warning: {warning}" for warning in self.warnings]
        return "\n".join([first, *warnings, f"resume with: {self.resume_command()}"])

    def finished_message(self) -> str:
        """What the driver says where there is nothing left to do."""
        config, summary = self.config, self.summary()
        limit = f", max_steps {config.max_steps}" if config.max_steps else ""
        return (
            f"run {config.name!r} is finished: step {summary['step']} of num_epochs {config.num_epochs}{limit}, in "
            f"{self.path}; more --num-epochs{' or --max-steps' if limit else ''} goes on (the learning rate then "
            "follows the longer schedule), another --name starts anew"
        )

    def locked(self) -> AbstractContextManager[None]:
        """Holds the run for this process within a `with` block; see `hold.held`.

        Raises:
            ValueError: another process holds it.
        """
        return held(self.folder)


def resumed_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a command line means: for a run that has saved, those it has stored, with `given` on top.

    Args:
        given: settings by name. Without a `name`, or where its run in `storage_path` has not saved, they are returned
            as they are.

    Raises:
        ValueError: the stored configuration is damaged, or the sizes of the mesh or the batch cannot fit.
    """
    name, storage = given.get("name"), given.get("storage_path") or TrainConfig.storage_path
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return dict(given)
    folder = RunFolder(Path(storage).expanduser() / name)
    return overlaid(folder, given) if _has_saved(folder) else dict(given)


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
    if not _NAME.fullmatch(name):
        raise ValueError(f"name {name!r} must be letters, digits, '.', '_' and '-': it names a folder")
    config = dataclasses.replace(config, storage_path=str(storage))
    folder = RunFolder(storage / name)
    previous = _previous(folder)
    if config.resume == "must" and not folder.has_checkpoint():
        raise ValueError(_nothing_to_resume(folder))
    if previous is None:
        return Run(config=config)
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
    if changes := difference(old, new, fixed=True):
        raise ValueError(
            f"run {new.name!r} cannot be resumed with other settings ({changes}): "
            "set them back, or choose another --name for a new run"
        )


def new_name(config: TrainConfig) -> str:
    """A name that no run has: the time, the model, the mesh and chance, e.g. `20260131-142501-tiny-2x2-3fa9`."""
    model = re.sub(r"[^A-Za-z0-9._]+", "-", re.split(r"[/:]", config.model_name.rstrip("/"))[-1]).strip("-.") or "model"
    mesh = f"{config.dp_size}x{config.tp_size}"
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{model}-{mesh}-{secrets.token_hex(2)}"


def read_summary(folder: RunFolder) -> dict[str, Any]:
    """The contents of `summary.json`, empty where there is none yet."""
    return json.loads(folder.summary.read_text(encoding="utf-8")) if folder.summary.exists() else {}


def _hatch_command(engine: str) -> str | None:
    """How a user of this environment starts the program: hatch sets its variable in the environments it activates."""
    return f"hatch run apps/train:{engine}" if os.environ.get("HATCH_ENV_ACTIVE") == "apps/train" else None


def _previous(folder: RunFolder) -> TrainConfig | None:
    """The configuration of the last start of the run in `folder`, None where there is none that has saved."""
    stored = read_stored(folder)
    if stored is None and folder.has_other_files():
        raise ValueError(f"{folder.path} exists and is not a run of this program: choose another --name")
    return stored if _has_saved(folder) else None


def _has_saved(folder: RunFolder) -> bool:
    """Whether there is something to protect; somebody may have removed the checkpoints of a run that has finished."""
    return folder.has_checkpoint() or bool(read_summary(folder).get("finished"))


def _nothing_to_resume(folder: RunFolder) -> str:
    name, storage = folder.path.name, folder.path.parent
    if not folder.config.exists():
        return f"nothing to resume: {storage} has no run {name!r} (--resume must)"
    again = f"--config {shlex.quote(str(folder.config))} starts it again"
    return f"nothing to resume: run {name!r} in {storage} has not saved yet (--resume must); {again}"


def _finished(folder: RunFolder, config: TrainConfig) -> bool:
    """Whether the run has ended at or beyond the length that `config` asks for."""
    summary = read_summary(folder)
    steps_done = config.max_steps is not None and summary.get("step", 0) >= config.max_steps
    return bool(summary.get("finished")) and (steps_done or summary["epoch"] >= config.num_epochs)
