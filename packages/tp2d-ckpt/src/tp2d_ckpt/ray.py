"""Committed checkpoints under Ray Train: tell Ray of each, and start from the newest, whatever Ray remembers.

The folder decides, not Ray's memory: a checkpoint is what `tp2d_ckpt.commit` calls one, and Ray is told of it
afterwards, without copying a byte. The driver's settings, all of them needed::

    folder = Path(storage_path).resolve() / name      # absolute: workers have another working directory
    mend_snapshot(folder)                              # what a killed controller left
    RunConfig(
        name=name,
        storage_path=str(folder.parent),
        checkpoint_config=CheckpointConfig(num_to_keep=keep),   # the same `keep` as report_committed, or None in both
        failure_config=FailureConfig(max_failures=max_failures, controller_failure_limit=3),
    )

and in the train function::

    checkpointer = Checkpointer(folder / "checkpoints", mesh=mesh)     # no `keep` here
    info = newest(checkpointer)                                        # None: a new run
    ...
    info = checkpointer.save(step=step, tensors=..., state=..., rank_state=...)
    report_committed(info, {"loss": loss, "step": step}, keep=keep)

Why ``num_to_keep=keep``: Ray's snapshot lists every checkpoint it knows, and a directory of that list that is gone
makes the next ``fit()`` fail. Ray shortens the list only by ``num_to_keep``: it writes the shorter list, then deletes.
With the same number Ray deletes only what is older than the last `keep`, and `report_committed` deletes only what is
not on Ray's list. Give no checkpoint_score_attribute: the last ones are kept, not the best. A save blocks until Ray's
controller has polled, every 2 s by default (``RAY_TRAIN_HEALTH_CHECK_INTERVAL_S``).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path

import ray
import ray.train
from ray.train import Checkpoint, CheckpointConsistencyMode, CheckpointUploadMode

from tp2d_ckpt.checkpointer import Checkpointer
from tp2d_ckpt.collective import CheckpointError, on_rank0
from tp2d_ckpt.commit import CheckpointInfo, checkpoint_at, find_latest
from tp2d_ckpt.retention import prune

Scalar = bool | int | float | str | None
_SNAPSHOT = "checkpoint_manager_snapshot.json"


def report_committed(
    info: CheckpointInfo, metrics: Mapping[str, Scalar], *, keep: int | None = None, timeout_s: float = 300.0
) -> None:
    """Report a committed checkpoint to Ray and wait until Ray has it for good; every worker calls it.

    ``ray.train.report`` returns before its controller has written anything, and a crash then forgets the report.

    Args:
        info: what `Checkpointer.save` returned, in the run's folder.
        metrics: plain Python scalars; rank 0's are kept with the checkpoint.
        keep: how many checkpoints to leave, as in ``CheckpointConfig(num_to_keep=keep)``; None for all.
        timeout_s: how long to wait for Ray's controller.

    Raises:
        ValueError: a metric is not a plain scalar (a NumPy one ends Ray's controller), or the checkpoint is not in the
            run's folder.
        CheckpointError: Ray did not take the report in time.
    """
    _check_metrics(metrics)
    path = _path_for_ray(info.path)
    ray.train.report(
        dict(metrics),
        checkpoint=Checkpoint.from_directory(path),
        checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
    )
    reported = ray.train.get_all_reported_checkpoints(CheckpointConsistencyMode.COMMITTED, timeout_s=timeout_s)
    listed = [Path(entry.checkpoint.path) for entry in reported]
    if Path(path) not in listed:
        raise CheckpointError(
            f"Ray did not take the report of {path} within {timeout_s:g} s (it lists {len(listed)} checkpoints); the "
            "checkpoint itself is committed, and the run will resume from it."
        )
    if keep is not None and ray.train.get_context().get_world_rank() == 0:
        _prune(info, keep=keep, listed=listed)


def newest(checkpointer: Checkpointer) -> CheckpointInfo | None:
    """The newest checkpoint of the run's folder and of what Ray remembers, or None; a collective.

    Rank 0 decides and all ranks get its answer. The folder has every checkpoint that Ray has; Ray's own
    answer helps where a network file system shows a listing from before the last save.
    """
    return on_rank0("looking for a checkpoint", lambda: _newest(checkpointer.root), group=checkpointer.mesh.world_group)


def mend_snapshot(folder: str | Path) -> str | None:
    """Set Ray's own list of a run's checkpoints aside where it would make ``fit()`` fail; the driver calls it.

    Ray rewrites the file in place, so a killed controller can leave half of one. A list that names a directory that
    is gone, or that another version of Ray wrote, fails too. The run loses nothing: it resumes by `newest`.

    Args:
        folder: ``<storage_path>/<name>``, which need not exist.

    Returns:
        A sentence on what was done and why, or None where nothing was wrong.
    """
    snapshot = Path(folder) / _SNAPSHOT
    if not snapshot.exists():
        return None
    if (fault := _fault(snapshot)) is None:
        return None
    aside = snapshot.with_name(f"{_SNAPSHOT}.set-aside")
    snapshot.replace(aside)
    return f"Ray's list of checkpoints {fault}; it was set aside as {aside}."


def _prune(info: CheckpointInfo, *, keep: int, listed: list[Path]) -> None:
    if len(listed) > keep:
        warnings.warn(
            f"Ray keeps {len(listed)} checkpoints and keep={keep}, so more are left than asked for: give RunConfig "
            f"checkpoint_config=CheckpointConfig(num_to_keep={keep}).",
            stacklevel=3,
        )
    prune(info, keep=keep, protect=listed)


def _newest(root: Path) -> CheckpointInfo | None:
    found = [info for info in (find_latest(root), _remembered()) if info is not None]
    return max(found, key=lambda info: info.sequence, default=None)


def _remembered() -> CheckpointInfo | None:
    """The checkpoint Ray would resume from, if it is one."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    try:
        return checkpoint_at(checkpoint.path)
    except ValueError as error:
        warnings.warn(f"Ray remembers a checkpoint that cannot be used: {error}", stacklevel=2)
        return None


def _fault(snapshot: Path) -> str | None:
    try:
        state = json.loads(snapshot.read_text())
        names = [entry["checkpoint_dir_name"] for entry in state["checkpoint_results"]]
        written_by = state["ray_version"]
    except (ValueError, KeyError, TypeError):
        return "is not readable (its writer was killed)"
    if written_by != ray.__version__:
        return f"was written by Ray {written_by} and this is {ray.__version__}"
    gone = [name for name in names if not (snapshot.parent / name).is_dir()]
    return f"names {gone[0]}, which is gone" if gone else None


def _check_metrics(metrics: Mapping[str, Scalar]) -> None:
    for name, value in metrics.items():
        if type(value) not in (bool, int, float, str, type(None)):
            kind = f"{type(value).__module__}.{type(value).__qualname__}"
            raise ValueError(f"the metric {name} is a {kind}: give Ray a plain Python number, float(...) of it.")


def _path_for_ray(path: Path) -> str:
    """`path` as Ray spells its run's folder: it compares names as text, so a symbolic link in one would not match."""
    folder = Path(ray.train.get_context().get_storage().experiment_fs_path)
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"the checkpoint {path} is not in the run's folder {folder}: give Checkpointer a root in "
            "RunConfig's storage_path/name."
        )
    return str(folder / path.resolve().relative_to(folder.resolve()))
