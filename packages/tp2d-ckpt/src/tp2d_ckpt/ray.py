"""Checkpoints under Ray Train: report each one to Ray, and resume from the newest in the run's folder.

The folder decides what is a checkpoint and which is the newest, not what Ray remembers (`tp2d_ckpt.commit`). A
checkpoint is committed first and reported to Ray afterwards, without a copy. The driver needs all of these settings::

    folder = Path(storage_path).resolve() / name      # absolute: workers have another working directory
    mend_snapshot(folder)                              # for what a killed controller left
    RunConfig(
        name=name,
        storage_path=str(folder.parent),
        checkpoint_config=CheckpointConfig(num_to_keep=keep),   # the `keep` of report_committed, or None for both
        failure_config=FailureConfig(max_failures=max_failures, controller_failure_limit=3),
    )

and in the train function::

    checkpointer = Checkpointer(folder / "checkpoints", mesh=mesh)     # no `keep` here
    info = newest(checkpointer)                                        # None in a new run
    ...
    info = checkpointer.save(step=step, tensors=..., state=..., rank_state=...)
    report_committed(info, {"loss": loss, "step": step}, keep=keep)

Why `num_to_keep=keep`: Ray writes a snapshot, which lists every checkpoint it knows, and the next `fit()` fails if a
directory of that list is gone. Only `num_to_keep` makes Ray shorten the list: it writes the shorter list and then
deletes. With the same number in both places, Ray deletes only what is older than the last `keep` checkpoints, and
`report_committed` deletes only what is not on Ray's list. Set no `checkpoint_score_attribute`: the last checkpoints are
kept, not the best. A report blocks until Ray's controller has polled, every 2 s by default
(`RAY_TRAIN_HEALTH_CHECK_INTERVAL_S`).
"""

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
    """Report a committed checkpoint to Ray and wait until Ray has written it down; every worker calls it.

    `ray.train.report` returns before Ray's controller has written anything, so a crash could lose the report.

    Args:
        info: the checkpoint that `Checkpointer.save` returned, in the run's folder.
        metrics: plain Python scalars; Ray keeps those of rank 0 with the checkpoint.
        keep: how many checkpoints to leave, as in `CheckpointConfig(num_to_keep=keep)`; None for all.
        timeout_s: how many seconds to wait for Ray's controller.

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
    """The newest checkpoint in the run's folder, or the one Ray remembers if that is newer, or None; a collective.

    Rank 0 decides and all ranks get its answer. Every checkpoint that Ray has is in the folder. Ray's memory helps
    where a network file system shows an old listing of the folder, from before the last save.
    """
    return on_rank0("looking for a checkpoint", lambda: _newest(checkpointer.root), group=checkpointer.mesh.world_group)


def mend_snapshot(folder: str | Path) -> str | None:
    """Rename Ray's snapshot, its list of a run's checkpoints, where it would make `fit()` fail; the driver calls it.

    Ray rewrites the file in place, so a killed controller can leave half of one. `fit()` also fails on a list that
    another version of Ray wrote, or that names a directory that is gone. The run loses nothing: it resumes by `newest`.

    Args:
        folder: `<storage_path>/<name>`, which need not exist.

    Returns:
        A sentence that says what was done and why, or None where nothing was wrong.
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
            f"Ray keeps {len(listed)} checkpoints and keep={keep}, so more are left than asked for: set "
            f"RunConfig(checkpoint_config=CheckpointConfig(num_to_keep={keep})).",
            stacklevel=3,
        )
    prune(info, keep=keep, protect=listed)


def _newest(root: Path) -> CheckpointInfo | None:
    found = [info for info in (find_latest(root), _remembered()) if info is not None]
    return max(found, key=lambda info: info.sequence, default=None)


def _remembered() -> CheckpointInfo | None:
    """The checkpoint that Ray would resume from, if it is a checkpoint."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    try:
        return checkpoint_at(checkpoint.path)
    except ValueError as error:
        warnings.warn(f"Ray remembers a checkpoint that cannot be used: {error}", stacklevel=2)
        return None


def _fault(snapshot: Path) -> str | None:
    """What is wrong with Ray's snapshot, or None."""
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
            raise ValueError(f"the metric {name} is a {kind}: give Ray a plain Python number, such as float(...).")


def _path_for_ray(path: Path) -> str:
    """`path` with the run's folder as Ray spells it: Ray compares paths as text, without resolving symbolic links."""
    folder = Path(ray.train.get_context().get_storage().experiment_fs_path)
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ValueError(
            f"the checkpoint {path} is not in the run's folder {folder}: give Checkpointer a root inside "
            "<storage_path>/<name> of RunConfig."
        )
    return str(folder / path.resolve().relative_to(folder.resolve()))
