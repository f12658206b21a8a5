"""The process that local ranks are forked from: it imports what every rank needs once, while the driver checks.

A rank's imports cost seconds of processor time, more than a short run's training. Forked ranks share one import. The
process computes nothing and touches no GPU, because neither threads nor a GPU's context would live in a fork. Where
an import has touched a GPU all the same, the ranks are spawned, and each imports for itself.

It reads one `Job` at a time from its pipe, and answers each with None or the error of the rank that failed. Where the
pipe ends its driver is gone, and so are the ranks soon after.
"""

import contextlib
import dataclasses
import gc
import importlib
import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

GPU_FILES = ("/dev/nvidia", "/dev/kfd")
NEEDED = ("tp2d_train.training.worker", "transformers.modeling_utils", "torch._dynamo")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """The ranks of one attempt.

    Args:
        settings: of `TrainConfig`, by name.
        environment: the whole environment of every rank, but for its own number.
        modules: what to import before the ranks are forked, as far as it is there.
        ranks: how many.
        threads: of every rank on the CPU.
        grace: seconds that the peers of a failed rank have to leave, and all ranks where the driver is gone.
    """

    settings: Mapping[str, Any]
    environment: Mapping[str, str]
    modules: Sequence[str]
    ranks: int
    threads: int
    grace: float


def main() -> None:
    """The program: its arguments are the number of its end of the pipe, and the module of the engine."""
    serve(Connection(int(sys.argv[1])), sys.argv[2])


def serve(pipe: Connection, engine: str) -> None:
    """Runs jobs until the pipe ends.

    Args:
        pipe: the driver's other end has the jobs.
        engine: the module of the engine, which is imported beforehand.
    """
    for number in (signal.SIGINT, signal.SIGTERM):  # a terminal or a scheduler sends them to all; the driver takes it
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    import_all((*NEEDED, engine))
    # Of a lost rank's peers torch writes lines of its own; the driver says in one line what happened.
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            pipe.send(_run(pipe.recv(), pipe))
    os._exit(0)  # nothing is open here, and the driver waits


def touched_gpu() -> bool:
    """Whether this process has opened a GPU, so that its forks could not use one."""
    for file in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that lists them is closed meanwhile
            if str(file.readlink()).startswith(GPU_FILES):
                return True
    return False


def import_all(modules: Sequence[str]) -> None:
    """Imports those that are there."""
    for module in modules:
        with contextlib.suppress(Exception):  # the rank that needs it will say so
            importlib.import_module(module)


def _run(job: Job, pipe: Connection) -> Exception | None:
    from torch.multiprocessing import ProcessExitedException, ProcessRaisedException, start_processes

    from tp2d_train.outcome import WorkerDied

    import_all(job.modules)
    gc.collect()
    gc.freeze()  # a collection in a rank would copy every page that it shares with this process
    method = "spawn" if touched_gpu() else "fork"
    given = (job, pipe if method == "fork" else None)
    context = start_processes(_work, given, nprocs=job.ranks, join=False, daemon=True, start_method=method)
    while context.sentinels:
        ready = wait([*context.sentinels, pipe])
        if pipe in ready:
            _end(context.processes, grace=job.grace)
            raise EOFError
        ended = [context.sentinels[sentinel] for sentinel in ready if isinstance(sentinel, int)]
        killed = _killed(context.processes, ended)  # looked at now: the peers of a lost rank fail in their turn
        try:
            context.join(timeout=0, grace_period=job.grace)
        except (ProcessExitedException, ProcessRaisedException) as error:
            return WorkerDied(killed) if killed else error
    return None


def _work(rank: int, job: Job, pipe: Connection | None) -> None:
    from torch.multiprocessing import _prctl_pr_set_pdeathsig  # type: ignore[attr-defined]

    _prctl_pr_set_pdeathsig(signal.SIGKILL)  # after the end of the process above no rank may train beside new ones
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # again, for a spawned one
    if pipe is not None:
        pipe.close()  # else the driver would not see the end of the process that forked this one
    os.environ.clear()
    os.environ.update(job.environment, RANK=str(rank), LOCAL_RANK=str(rank))
    import torch

    torch.set_num_threads(job.threads)  # the variable was read before
    from tp2d_train.training.worker import train_func

    train_func(dict(job.settings))


def _killed(processes: Sequence[Any], ranks: Sequence[int]) -> str | None:
    for rank in ranks:
        process = processes[rank]
        process.join()  # its end is under way
        if process.exitcode is not None and process.exitcode < 0:
            return f"rank {rank} was ended by signal {-process.exitcode}"
    return None


def _end(processes: Sequence[Any], *, grace: float) -> None:
    """Asks the ranks to save and leave, and kills those that have not after `grace` seconds."""
    for process in processes:
        process.terminate()
    wait([process.sentinel for process in processes], grace)
    for process in processes:
        process.kill()
