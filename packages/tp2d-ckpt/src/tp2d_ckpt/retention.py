"""Which checkpoints stay: the last N, and nothing of saves that never finished.

A checkpoint is deleted by removing its mark first, so that a process killed in between leaves a leftover and not half
a checkpoint.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Collection
from pathlib import Path

from tp2d_ckpt.commit import MARK, CheckpointInfo, list_checkpoints, save_directories, sync_directory


def prune(newest: CheckpointInfo, *, keep: int, protect: Collection[Path] = ()) -> list[Path]:
    """Delete the checkpoints beside `newest` beyond the last `keep`, the oldest first.

    One process calls it, after `newest` was committed. What cannot be deleted is left with a warning, unmarked, and
    goes at a later commit: a run does not end because an old file is still open.

    Args:
        newest: the checkpoint just committed; it stays.
        keep: how many to leave, `newest` included.
        protect: directories that stay whatever their age.

    Returns:
        The directories that were deleted.
    """
    kept = {newest.path.resolve(), *(path.resolve() for path in protect)}
    old = list_checkpoints(newest.path.parent)[:-keep]
    return [info.path for info in old if info.path.resolve() not in kept and delete(info.path)]


def sweep(newest: CheckpointInfo) -> list[Path]:
    """Delete what killed saves left beside `newest`: directories without a mark that are older than it.

    One process calls it, after `newest` was committed. Older means last touched before the directory of `newest` was
    made, by the file system's own clock; a save still going on elsewhere is younger.

    Returns:
        The directories that were deleted.
    """
    unmarked = [p for p in save_directories(newest.path.parent) if not (p / MARK).exists()]
    return [p for p in unmarked if p.stat().st_mtime_ns < _born(newest.path) and delete(p)]


def _born(path: Path) -> int:
    """When the first file of a save was written, in ns."""
    return min(file.stat().st_mtime_ns for file in path.iterdir())


def delete(path: Path) -> bool:
    """Delete a save's directory, its mark first; whether that went well. Where it did not, a warning says why."""
    try:
        (path / MARK).unlink(missing_ok=True)
        sync_directory(path)
        shutil.rmtree(path)
    except OSError as error:
        warnings.warn(f"the directory {path} could not be deleted: {error}", stacklevel=3)
        return False
    return True
