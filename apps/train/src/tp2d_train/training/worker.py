"""One rank of a run, from its settings to its last line.

`train_func` is what every launcher calls on every rank, and what a `TorchTrainer` of the user's own takes.
"""

from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from tp2d_train.config import TrainConfig
from tp2d_train.loop import Loop
from tp2d_train.meter import Clock, Meter
from tp2d_train.parts import build
from tp2d_train.progress import EventLog
from tp2d_train.record import Record
from tp2d_train.runs import STOP_FILE
from tp2d_train.stop import StopVote, wish_to_stop
from tp2d_train.summary import announce, conclude, summarise
from tp2d_train.surroundings import own_device, own_rank, own_world_size, run_checkpoints, run_folder


def train_func(config: dict[str, Any]) -> dict[str, Any]:
    """Trains as one rank of a run; every rank calls it with the same settings.

    Resumes from the newest checkpoint in the run's folder. Works in `TorchTrainer(train_func, train_loop_config=...)`,
    where Ray's storage is the folder and Ray's workers are the world; under torchrun; and alone.

    Args:
        config: settings of `TrainConfig` by name.

    Returns:
        The contents of `summary.json`; its `finished` is False where the run was asked to stop.

    Raises:
        ValueError: the settings, the model, the data or the placement cannot work.
    """
    settings = _settings(config)
    folder = run_folder(settings)
    folder.mkdir(parents=True, exist_ok=True)
    with wish_to_stop(folder / STOP_FILE if own_rank() == 0 else None) as wish:
        try:
            return _train(settings, folder, wish)
        except Exception as error:
            EventLog(folder).write_failure(error, rank=own_rank())
            raise


def _settings(config: Mapping[str, Any]) -> TrainConfig:
    """The configuration; where it says nothing of the number of ranks, they are those there are."""
    known = {"num_workers", "dp_size"} & config.keys()
    return TrainConfig(**config if known else {**config, "num_workers": own_world_size()})


def _train(config: TrainConfig, folder: Path, wish: Callable[[], bool]) -> dict[str, Any]:
    device = own_device(config.device)
    clock = Clock(device)
    parts = build(config, device=device, progress=lambda text: EventLog(folder).write("data", message=text))
    checkpoints = run_checkpoints(config, folder, mesh=parts.mesh, engine=parts.engine, loader=parts.loader)
    run, seconds, info = checkpoints.restore()
    clock.carry_over(seconds)
    clock.lap("setup")
    record = Record(folder, active=parts.mesh.rank == 0)
    meter = Meter(clock, parts.hardware, step=run.step, tokens=int(run.tokens))
    vote = StopVote(wish, timeout=timedelta(seconds=config.timeout_s))
    loop = Loop(
        config,
        engine=parts.engine,
        loader=parts.loader,
        held_out=parts.held_out,
        checkpoints=checkpoints,
        record=record,
        vote=vote,
        run=run,
        clock=clock,
        meter=meter,
    )
    announce(config, parts, run, record, resumed=None if info is None else info.path.name)
    finished = loop.run()
    summary = summarise(config, parts, run, clock=clock, meter=meter, finished=finished)
    conclude(config, summary, record)
    if parts.mesh.rank == 0:
        (folder / STOP_FILE).unlink(missing_ok=True)  # a wish that was granted
    vote.settle()
    parts.engine.close()
    parts.mesh.close()
    return summary
