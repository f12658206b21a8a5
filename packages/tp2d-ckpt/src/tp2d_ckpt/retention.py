"""Deletes old checkpoints beyond the last N, and what unfinished saves left; keeps one aside that is not to go.

The mark of a checkpoint is removed first, so a process killed meanwhile leaves an unfinished save and no checkpoint
with files missing.
"""

import os
import shutil
import warnings
from collections.abc import Collection
from pathlib import Path

from tp2d_ckpt.commit import KEPT, MARK, CheckpointInfo, checkpoint_at, list_checkpoints, save_directories
from tp2d_ckpt.files import sync_directory, sync_file


def prune(newest: CheckpointInfo, *, keep: int, protect: Collection[Path] = ()) -> list[Path]:
    """Delete the checkpoints in the folder of `newest` beyond the last `keep`, the oldest first.

    One process calls it, after `newest` was committed. A directory that cannot be deleted is left without its mark,
    with a warning, and is deleted after a later commit: a run does not end because an old file is still open.

    Args:
        newest: the checkpoint just committed; it is never deleted.
        keep: how many to leave, `newest` included.
        protect: directories that are never deleted, whatever their age.

    Returns:
        The directories that were deleted.
    """
    kept = {newest.path.resolve(), *(path.resolve() for path in protect)}
    old = [info for info in list_checkpoints(newest.path.parent) if not info.is_kept][:-keep]
    return [info.path for info in old if info.path.resolve() not in kept and delete(info.path)]


def keep_aside(info: CheckpointInfo) -> CheckpointInfo:
    """Give a checkpoint a second name, `<name>-kept`, under which nothing that rotates checkpoints deletes it.

    One process calls it. The files are hard links, which cost no space, or copies where the file system has no links.
    The mark comes last, so a process killed meanwhile leaves no checkpoint, and the next call begins anew.

    Returns:
        The checkpoint by its second name; `info` itself where that is one already.
    """
    if info.is_kept:
        return info
    path = info.path.with_name(info.path.name + KEPT)
    if (path / MARK).exists():
        return checkpoint_at(path)
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(info.path, path, copy_function=_link, ignore=shutil.ignore_patterns(MARK))
    sync_directory(path)
    _link(str(info.path / MARK), str(path / MARK))
    sync_directory(path)
    sync_directory(path.parent)
    return checkpoint_at(path)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)
        sync_file(Path(target))


def sweep(newest: CheckpointInfo) -> list[Path]:
    """Delete what killed saves left in the folder of `newest`: directories without a mark that are older than it.

    One process calls it, after `newest` was committed. A directory is older if it was last changed before the first
    file of `newest` was written, by the file system's clock. A save that another process is still writing is younger.

    Returns:
        The directories that were deleted.
    """
    unmarked = [p for p in save_directories(newest.path.parent) if not (p / MARK).exists()]
    return [p for p in unmarked if p.stat().st_mtime_ns < _first_written(newest.path) and delete(p)]


def _first_written(path: Path) -> int:
    """When the first file of a save was written, in ns."""
    return min(file.stat().st_mtime_ns for file in path.iterdir())


def delete(path: Path) -> bool:
    """Delete the directory of a save, its mark first. False, with a warning, where that failed."""
    try:
        (path / MARK).unlink(missing_ok=True)
        sync_directory(path)
        shutil.rmtree(path)
    except OSError as error:
        warnings.warn(f"the directory {path} could not be deleted: {error}", stacklevel=3)
        return False
    return True
