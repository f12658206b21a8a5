"""The same run without Ray: as processes of this machine."""

import contextlib
import dataclasses
import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import wait
from types import ModuleType
from typing import Any

import torch.distributed as dist
from torch.multiprocessing import ProcessContext, ProcessExitedException, ProcessRaisedException, start_processes
from tp2d_mesh.devices import backend_for

from tp2d_train.config import TrainConfig
from tp2d_train.outcome import WorkerDied
from tp2d_train.report.progress import EventLog
from tp2d_train.runs import Run
from tp2d_train.setup.devices import choose_device, count_gpus

HOST = "127.0.0.1"
GRACE_SECONDS = 5.0


def spawn(run: Run) -> None:
    """Runs all ranks as processes of this machine, and starts them again up to `max_failures` times.

    Raises:
        ValueError: the machine does not have the devices that the configuration asks for.
        WorkerDied, ProcessRaisedException: a rank failed for the last time.
    """
    gpus = count_gpus()
    device = choose_device(run.config, gpus=gpus)
    backend = backend_for(device)
    processes = "1 local process" if run.config.num_workers == 1 else f"{run.config.num_workers} local processes"
    what = f"starting {processes} on {device} ({backend}); there are {gpus} GPUs"
    EventLog(run.folder).write("phase", message=what)
    config = dataclasses.replace(run.config, device=device.type)
    for failures in range(config.max_failures + 1):
        try:
            return _attempt(config)
        except (WorkerDied, ProcessExitedException, ProcessRaisedException) as error:
            if failures == config.max_failures:
                raise
            cause = str(error).strip().splitlines()[-1]
            again = f"{cause}; starting again, {failures + 1} of {config.max_failures} times"
            EventLog(run.folder).write("warning", message=again)


def _attempt(config: TrainConfig) -> None:
    # The store lives here, on a port that the system chose: none to guess, none to lose to another run.
    store = dist.TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
    threads = max(1, (os.cpu_count() or 1) // config.num_workers)
    shared = {
        "MASTER_ADDR": HOST,
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # torch's way to say that the store exists already
        "WORLD_SIZE": str(config.num_workers),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
    }
    # Of a lost rank's peers torch writes lines of its own; the driver says in one line what happened.
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    with _no_main_module():
        context = start_processes(
            _work, (shared, config.as_dict()), nprocs=config.num_workers, join=False, daemon=True, start_method="spawn"
        )
    while context.sentinels:
        ended = [context.sentinels[sentinel] for sentinel in wait(list(context.sentinels))]
        killed = _killed(context, ended)  # looked at now: the peers of a lost rank fail in their turn
        try:
            context.join(timeout=0, grace_period=GRACE_SECONDS)
        except (ProcessExitedException, ProcessRaisedException) as error:
            raise WorkerDied(killed) if killed else error from None


@contextlib.contextmanager
def _no_main_module() -> Iterator[None]:
    """Within the block `multiprocessing` finds no main module that its processes would have to import.

    Ours need nothing of it. A script that calls `train` without asking whether `__name__` is `__main__` would start
    the run again in every one of them.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _work(rank: int, shared: Mapping[str, str], settings: dict[str, Any]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; the driver takes it
    os.environ.update(shared, RANK=str(rank), LOCAL_RANK=str(rank))
    from tp2d_train.training.worker import train_func  # late: the driver does not need it

    train_func(settings)


def _killed(context: ProcessContext, ranks: Sequence[int]) -> str | None:
    for rank in ranks:
        process = context.processes[rank]
        process.join()  # its end is under way
        if process.exitcode is not None and process.exitcode < 0:
            return f"rank {rank} was ended by signal {-process.exitcode}"
    return None
