"""What the folder of one run says of it: the material of a page. Everything is read here, and nothing is changed."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tp2d_train.config import TrainConfig
from tp2d_train.page.history import Start, starts_of
from tp2d_train.report.metrics import read_lines
from tp2d_train.runs.folder import RunFolder
from tp2d_train.runs.run import read_summary
from tp2d_train.runs.stored import read_stored


@dataclass(frozen=True, kw_only=True)
class Saved:
    """A checkpoint that is in the folder now.

    Args:
        name: of its directory.
        step: the optimizer step it was taken after.
        size: of its files, in bytes.
        is_kept: whether no later save deletes it.
    """

    name: str
    step: int
    size: int
    is_kept: bool


@dataclass(frozen=True, kw_only=True)
class Facts:
    """A run, as far as its files tell.

    Args:
        name: of the run.
        state: as `tp2d runs` has it: `running`, `finished`, `failed`, `stopped`, `no checkpoint` or `damaged`.
        config: the settings of the last start; None: they are damaged.
        summary: `summary.json`; a run that has not ended has little in it.
        steps: the lines of logged steps, each step once and in order.
        evaluations: the lines of evaluations, alike.
        events: all of them, as they were written.
        starts: the starts of the run, which `events` tell of.
        checkpoints: those in the folder, oldest first.
        damage: a sentence for each file that cannot be read.
    """

    name: str
    state: str
    config: TrainConfig | None
    summary: dict[str, Any]
    steps: Sequence[dict[str, Any]]
    evaluations: Sequence[dict[str, Any]]
    events: Sequence[dict[str, Any]]
    starts: Sequence[Start]
    checkpoints: Sequence[Saved]
    damage: Sequence[str]

    @property
    def identity(self) -> dict[str, Any]:
        """What ran: engine, mesh, device, precision, model, data, parameters; of the last start, as far as known."""
        names = ("model_name", "dataset_name", "parameters", "engine", "mesh", "precision", "device")
        told = {**(self.starts[-1].values if self.starts else {}), **self.summary}
        return {name: told[name] for name in names if told.get(name) is not None}


def read_facts(folder: RunFolder, *, state: str) -> Facts:
    """Reads a run; what is damaged is said in `Facts.damage`.

    Args:
        folder: the run's.
        state: of the run, which takes looking for its processes.
    """
    damage: list[str] = []
    lines = [line for line in read_lines(folder.metrics)[0] if _is_number(line.get("step"))]
    events = [event for event in read_lines(folder.events)[0] if _is_event(event)]
    return Facts(
        name=folder.path.name,
        state=state,
        config=_config(folder, damage),
        summary=_summary(folder, damage),
        steps=_each_once(line for line in lines if "loss" in line),
        evaluations=_each_once(line for line in lines if "eval_loss" in line),
        events=events,
        starts=starts_of(events, is_running=state == "running"),
        checkpoints=_checkpoints(folder.checkpoints, damage),
        damage=damage,
    )


def _config(folder: RunFolder, damage: list[str]) -> TrainConfig | None:
    try:
        return read_stored(folder)
    except ValueError as error:
        damage.append(" ".join(str(error).split()))
        return None


def _summary(folder: RunFolder, damage: list[str]) -> dict[str, Any]:
    try:
        found = read_summary(folder)
    except (OSError, ValueError) as error:
        damage.append(f"{folder.summary.name} cannot be read: {error}")
        return {}
    if isinstance(found, dict):
        return found
    damage.append(f"{folder.summary.name} holds no object")
    return {}


def _each_once(lines: Any) -> list[dict[str, Any]]:
    """A line for each step. Of two the later holds: the step was computed again after a kill."""
    by_step = {line["step"]: line for line in lines}
    return [by_step[step] for step in sorted(by_step)]


def _checkpoints(root: Path, damage: list[str]) -> list[Saved]:
    if not root.is_dir():
        return []
    from tp2d_ckpt import list_checkpoints, read_manifest  # late: it imports torch

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        infos = list_checkpoints(root)
    damage.extend(str(warning.message) for warning in told)
    return [
        Saved(
            name=info.path.name,
            step=info.step,
            size=sum(record.size for record in read_manifest(info.path).files.values()),
            is_kept=info.is_kept,
        )
        for info in infos
    ]


def _is_event(event: dict[str, Any]) -> bool:
    step = event.get("step")
    return isinstance(event.get("event"), str) and _is_number(event.get("time")) and (step is None or _is_number(step))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
