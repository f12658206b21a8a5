"""Run a function on a real dp x tp mesh of local gloo processes: distributed code, tested in about a second.

The ranks are forked from a server that has torch loaded (and transformers where it is installed), so that a call pays
for process groups and not for imports; the first call of a process starts the server. Every rank has one thread.

    def total(mesh, value):
        x = torch.tensor([value * (mesh.rank + 1)])
        dist.all_reduce(x, group=mesh.tp_group)
        return x

    def test_total():
        assert run_on_mesh(total, 10, tp=2) == [30, 30]
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import pickle
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch.distributed as dist

from tp2d_mesh._rank import Job, Report, describe, dumps, serve
from tp2d_mesh.layout import Layout

# What tests of tensor parallel models import, a second or more each; absent ones are left out.
_PRELOAD = (
    "torch",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.tensor.parallel",
    "torch._dynamo",
    "transformers.modeling_utils",
    "pytest",
    "hypothesis",
    "tp2d_mesh.testing",
)
_GRACE = 0.3  # seconds in which the death of one rank may reach us later than what it caused on another
_LEAVE = 2.0  # seconds for a rank to exit once all have reported


class MeshError(RuntimeError):
    """A rank of `run_on_mesh` failed, died or did not finish; the message names it and holds its traceback."""


@dataclass(frozen=True, kw_only=True)
class _Rank:
    index: int
    pid: int
    process: BaseProcess
    connection: Connection

    def report(self) -> Report | None:
        """What the rank has sent, if anything."""
        with suppress(EOFError, ConnectionResetError):
            return self.connection.recv() if self.connection.poll() else None
        return None


def run_on_mesh(
    fn: Callable[..., Any], *args: Any, dp: int = 1, tp: int = 1, timeout: float = 60.0, **kwargs: Any
) -> list[Any]:
    """Call ``fn(mesh, *args, **kwargs)`` on dp x tp local gloo processes.

    Args:
        fn: a function at the top level of any file, a test file too; its first argument is the rank's `Mesh`.
        args: pickled; tensors travel by value.
        dp: data-parallel size.
        tp: tensor-parallel size.
        timeout: seconds for the whole call; also the time-out of every process group.
        kwargs: pickled, like `args`.

    Returns:
        Every rank's result, in rank order; tensors are detached CPU tensors.

    Raises:
        MeshError: a rank raised (the message ends in the traceback of the first that did), died, or had not finished
            in time (the message says which ranks, and where each of them stood). No rank outlives the call.
        ValueError: `fn` cannot be found by another process, or a size is not a positive integer.
    """
    layout = Layout(dp=dp, tp=tp)
    module, file = describe(fn)
    with tempfile.TemporaryDirectory(prefix="run-on-mesh-") as folder:
        # The parent serves the store: the port is free because the server itself has taken it.
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        job = Job(
            layout=layout,
            timeout=timeout,
            port=store.port,
            module=module,
            file=file,
            call=dumps((fn, args, kwargs)),
            environment=dict(os.environ),
            folder=folder,
        )
        with _started(job) as ranks:
            reports = _gather(ranks, job)
    return [pickle.loads(reports[rank.index].body) for rank in ranks]


@contextmanager
def _started(job: Job) -> Iterator[list[_Rank]]:
    """All ranks of `job`, running; ended, with whatever they started, when the block is left."""
    ranks: list[_Rank] = []
    finished = False
    try:
        ranks.extend(_start(index, job) for index in range(job.layout.world_size))
        yield ranks
        finished = True
    finally:
        _end(ranks, grace=_LEAVE if finished else 0.0)


def _start(index: int, job: Job) -> _Rank:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([name for name in _PRELOAD if _exists(name)])
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(index, job, theirs), name=f"rank-{index}")
    process.start()
    theirs.close()
    assert process.pid is not None  # it has started
    return _Rank(index=index, pid=process.pid, process=process, connection=ours)


def _exists(module: str) -> bool:
    return importlib.util.find_spec(module.partition(".")[0]) is not None


def _end(ranks: Sequence[_Rank], *, grace: float) -> None:
    """Hang up, which lets the ranks exit; kill the process group of each that has not within `grace` seconds."""
    deadline = time.monotonic() + grace
    for rank in ranks:
        rank.connection.close()
    for rank in ranks:
        rank.process.join(max(0.0, deadline - time.monotonic()))
        with suppress(ProcessLookupError):  # the group is gone where nothing of it is left
            os.killpg(rank.pid, signal.SIGKILL)
        rank.process.kill()  # it may not have made its group yet
        rank.process.join()
        rank.process.close()


def _gather(ranks: Sequence[_Rank], job: Job) -> dict[int, Report]:
    """Every rank's result, or the `MeshError` of the first failure."""
    deadline = time.monotonic() + job.timeout
    running = list(ranks)
    reports: dict[int, Report] = {}
    while running:
        if not wait(_handles(running), max(0.0, deadline - time.monotonic())):
            raise MeshError(_late(running, job))
        for rank in [r for r in running if wait(_handles([r]), 0.0)]:
            running.remove(rank)
            report = rank.report()
            if report is None:
                raise MeshError(_death(rank, job))
            if report.kind == "error":
                raise MeshError(_failure(rank, report, running, job))
            reports[rank.index] = report
    return reports


def _handles(ranks: Sequence[_Rank]) -> list[Any]:
    return [handle for rank in ranks for handle in (rank.connection, rank.process.sentinel)]


def _failure(rank: _Rank, report: Report, running: Sequence[_Rank], job: Job) -> str:
    """The text for a rank that raised, unless a peer has died without a word: then that is what it raised about."""
    deadline = time.monotonic() + _GRACE
    peers = list(running)
    while peers and wait(_handles(peers), max(0.0, deadline - time.monotonic())):
        for peer in [p for p in peers if wait(_handles([p]), 0.0)]:
            peers.remove(peer)
            if peer.report() is None:
                return _death(peer, job)
    return f"rank {rank.index} of the {job.layout} mesh failed:\n{report.body.decode()}"


def _death(rank: _Rank, job: Job) -> str:
    rank.process.join(_LEAVE)
    return (
        f"rank {rank.index} of the {job.layout} mesh died with exit code {rank.process.exitcode} before it returned; "
        "what it printed last is on standard error."
    )


def _late(running: Sequence[_Rank], job: Job) -> str:
    """The text for a time-out: which ranks were not done, and the stack of each."""
    for rank in running:
        with suppress(ProcessLookupError):
            os.kill(rank.pid, signal.SIGUSR1)
    time.sleep(_GRACE)  # the dump is written by a signal handler, which tells nobody
    late = [rank.index for rank in running]
    done = [index for index in range(job.layout.world_size) if index not in late]
    text = f"ranks {late} of the {job.layout} mesh had not finished after {job.timeout:g} s; finished: {done}."
    for index in late:
        stack = Path(job.folder) / f"stack-{index}"
        text += f"\nrank {index} was at:\n{stack.read_text() if stack.exists() else 'its start'}"
    return text
