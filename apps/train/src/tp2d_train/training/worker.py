"""One rank of a run, from its settings to its last line.

`train_func` is what every launcher calls on every rank, and what a user's own `TorchTrainer` takes.
"""

import contextlib
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from tp2d_mesh.devices import use_deterministic_kernels

from tp2d_train.config import TrainConfig
from tp2d_train.report.logs import logged_as_events, set_log_level
from tp2d_train.report.meter import Clock, Meter
from tp2d_train.report.progress import EventLog
from tp2d_train.report.record import Record
from tp2d_train.runs.folder import RunFolder
from tp2d_train.setup.build import Parts, build
from tp2d_train.setup.devices import check_snapshot
from tp2d_train.training.host import Host, check_alone, find_host, own_rank, own_world_size
from tp2d_train.training.loop import Loop
from tp2d_train.training.stop import StopVote, stop_requests
from tp2d_train.training.summary import announce, conclude, summarise

if TYPE_CHECKING:
    from tp2d_train.training.profiling import Profiling


def train_func(config: dict[str, Any]) -> dict[str, Any]:
    """Trains as one rank of a run; every rank calls it with the same settings.

    Resumes from the newest checkpoint in the run's folder. Works in `TorchTrainer(train_func, train_loop_config=...)`,
    where Ray's storage is the folder and Ray's workers are the world; under torchrun; and alone, as one process.

    Args:
        config: settings of `TrainConfig` by name.

    Returns:
        The contents of `summary.json`; its `finished` is False where the run was asked to stop.

    Raises:
        ValueError: the settings, the model, the data or the placement cannot work, or there is no world of ranks and
            the settings are not those of a run of one process.
    """
    check_alone(config)
    settings, host = _settings(config), find_host()
    set_log_level(settings.log_level)
    folder, rank = host.folder(settings), own_rank()
    folder.path.mkdir(parents=True, exist_ok=True)
    with (
        logged_as_events(folder, rank=rank),
        stop_requests(folder.stop if rank == 0 else None) as requested,
    ):
        try:
            return _train(settings, host, folder, requested)
        except Exception as error:
            EventLog(folder).write_failure(error, rank=rank)
            raise


def _settings(config: Mapping[str, Any]) -> TrainConfig:
    """The configuration; where it says nothing of the number of ranks, they are those there are."""
    known = {"num_workers", "dp_size"} & config.keys()
    return TrainConfig(**config if known else {**config, "num_workers": own_world_size()})


def _train(config: TrainConfig, host: Host, folder: RunFolder, requested: Callable[[], bool]) -> dict[str, Any]:
    if config.deterministic:
        use_deterministic_kernels()  # before anything touches a GPU
    device = host.device(config.device)
    check_snapshot(config, device=device)
    clock = Clock(device)
    record = Record(folder, active=own_rank() == 0)
    # Any rank may be the one that tokenises.
    everyone = Record(folder, active=True)
    parts = build(config, device=device, phase=record.phase, progress=everyone.phase)
    checkpoints = host.checkpoints(config, folder, mesh=parts.mesh, engine=parts.engine, loader=parts.loader)
    record.phase("restoring the newest checkpoint, if there is one")
    run, seconds, info = checkpoints.restore()
    clock.carry_over(seconds)
    clock.lap("setup")
    meter = Meter(clock, parts.hardware, step=run.step, tokens=int(run.tokens), positions=int(run.positions))
    vote = StopVote(requested, timeout=timedelta(seconds=config.timeout_s))
    profiling = _profiling(config, parts, folder, record, first_step=run.step + 1)
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
        profiling=profiling,
    )
    announce(config, parts, run, record, resumed=None if info is None else info.path.name)
    record.phase("compiling, and the first step" if parts.engine.compiled else "the first step")
    with profiling or contextlib.nullcontext():
        finished = loop.run()
    summary = summarise(config, parts, run, clock=clock, meter=meter, finished=finished)
    conclude(config, summary, record)
    if parts.mesh.rank == 0:
        folder.stop.unlink(missing_ok=True)  # a request that was granted
    vote.settle()
    parts.engine.close()
    parts.mesh.close()
    return summary


def _profiling(
    config: TrainConfig, parts: Parts, folder: RunFolder, record: Record, *, first_step: int
) -> "Profiling | None":
    if not (config.profile or config.memory_snapshot):
        return None
    from tp2d_train.training.profiling import Profiling  # late: only a run that records needs the profiler

    return Profiling(config, mesh=parts.mesh, folder=folder, record=record, first_step=first_step)
