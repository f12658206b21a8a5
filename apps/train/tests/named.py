"""Runs under a name as the driver leaves them, without a worker."""

import json
from pathlib import Path
from typing import Any

from tp2d_ckpt.commit import Manifest, commit, create_directory
from tp2d_train.config import TrainConfig
from tp2d_train.runs.run import Run, find_run


def config(storage: Path, **settings: Any) -> TrainConfig:
    return TrainConfig(storage_path=str(storage), **settings)


def started(storage: Path, **settings: Any) -> Run:
    run = find_run(config(storage, **settings))
    run.start()
    return run


def saved(storage: Path, **settings: Any) -> Run:
    run = started(storage, **settings)
    save(run)
    return run


def save(run: Run) -> None:
    path = create_directory(run.folder.checkpoints, step=1)
    commit(path, Manifest(step=1, dp=1, tp=1, engine=None, tensors={}, files={}, versions={}))


def finish(run: Run, *, epoch: int, step: int) -> None:
    run.folder.summary.write_text(json.dumps({"finished": True, "epoch": epoch, "step": step}))
