"""What the driver can know before a worker starts, checked in the order of what it costs to find out.

Every refusal is a `ValueError` that names the option, the numbers and the way out.
"""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tp2d_train.config import TrainConfig
from tp2d_train.runs.run import Run, find_run

PATH_FIELDS = ("model_name", "tokenizer_name", "deepspeed_config")
DATASET_FIELDS = ("dataset_name", "eval_dataset")


def check(config: TrainConfig, *, progress: Callable[[str], None]) -> Run:
    """Checks a configuration, and returns the run it starts or resumes, with what a user should know of it.

    Args:
        config: the settings.
        progress: is told what takes seconds.

    Raises:
        ValueError: the first thing that cannot work.
    """
    run = find_run(absolute_paths(config))
    if run.finished:
        return run
    progress("checking the model and the data")
    from tp2d_train.setup import data, devices, engine, length, model  # late: a wrong name is answered without torch

    device = devices.check(run.config)
    engine.check_spec(run.config, device=device)
    found = model.check(run.config)
    engine.check(run.config, found, device=device)
    rows = data.check(run.config, found, progress=progress)
    return dataclasses.replace(run, warnings=length.check(run.config, rows=rows))


def absolute_paths(config: TrainConfig) -> TrainConfig:
    """The configuration with the names of existing local files and folders made absolute: workers run elsewhere."""
    given = {name: getattr(config, name) for name in PATH_FIELDS}
    absolute: dict[str, Any] = {name: _absolute(value) for name, value in given.items() if value}
    for name in DATASET_FIELDS:
        absolute[name] = (datasets := getattr(config, name)) and tuple(map(_absolute, datasets))
    return dataclasses.replace(config, **absolute)


def _absolute(name: str) -> str:
    path = Path(name).expanduser()
    return os.path.abspath(path) if path.exists() else name  # noqa: PTH100 (links stay as they are)
