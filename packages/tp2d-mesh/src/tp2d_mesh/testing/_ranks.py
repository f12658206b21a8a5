"""The caller's side of a mesh of local processes: start them, have one job done, say what went wrong, end them."""

import contextlib
import importlib.util
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch.distributed as dist

from tp2d_mesh.layout import Layout
from tp2d_mesh.testing._rank import TIDY_UP, Job, Report, Setup, serve

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
    "tp2d_mesh.testing._preloaded",
)
_GRACE = 0.3  # seconds in which the death of one rank may reach us later than what it caused on another
_LEAVE = 2.0  # seconds for a rank to exit once all have reported
_TIDY = 10.0  # seconds for a rank to put back its settings, on a busy machine


class MeshError(RuntimeError):
    """A rank of `run_on_mesh` failed, died or did not finish; the message names it and holds its traceback."""


@dataclass(frozen=True, kw_only=True)
class _Rank:
    index: int
    pid: int
    process: BaseProcess
    connection: Connection

    @property
    def handles(self) -> list[Any]:
        """What becomes ready when the rank has sent something or is dead."""
        return [self.connection, self.process.sentinel]

    def received(self) -> Any:
        """What the rank has sent; None if nothing."""
        with contextlib.suppress(EOFError, ConnectionResetError):
            return self.connection.recv() if self.connection.poll() else None
        return None


class Ranks:
    """The running processes of one mesh; whoever makes it ends it.

    Args:
        layout: the mesh.
        timeout: seconds, for every process group.
    """

    def __init__(self, layout: Layout, *, timeout: float) -> None:
        self.layout = layout
        self._folder = tempfile.TemporaryDirectory(prefix="run-on-mesh-")
        # The caller serves the store: the port is free because the server itself has taken it.
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self._ranks: list[_Rank] = []
        setup = Setup(layout=layout, timeout=timeout, port=self._store.port, folder=self._folder.name)
        try:
            for index in range(layout.world_size):
                self._ranks.append(_start(index, setup))
        except BaseException:
            self.end(wait_for_exit=False)
            raise

    def call(self, job: Job, *, timeout: float) -> list[bytes]:
        """Every rank's pickled result of `job`, in rank order.

        Raises:
            MeshError: a rank raised, died, or had not finished after `timeout` seconds. The mesh is of no use then.
        """
        self._send(job)
        reports = self._gather(timeout)
        return [reports[rank.index].body for rank in self._ranks]

    def idle(self) -> bool:
        """Whether all ranks live and wait for a job."""
        return not wait(_handles(self._ranks), 0.0)

    def tidy_up(self) -> bool:
        """After a call: whether every rank is as it was before, so that the mesh may take another job."""
        deadline = time.monotonic() + _TIDY
        self._send(TIDY_UP)
        for rank in self._ranks:
            if not wait(rank.handles, max(0.0, deadline - time.monotonic())) or rank.received() is not True:
                return False
        return True

    def end(self, *, wait_for_exit: bool) -> None:
        """Hang up, which lets the ranks exit; kill the process group of each that has not, and what it started.

        Args:
            wait_for_exit: give the ranks time to exit by themselves.
        """
        deadline = time.monotonic() + (_LEAVE if wait_for_exit else 0.0)
        for rank in self._ranks:
            rank.connection.close()
        for rank in self._ranks:
            rank.process.join(max(0.0, deadline - time.monotonic()))
            with contextlib.suppress(ProcessLookupError):  # the group is gone where nothing of it is left
                os.killpg(rank.pid, signal.SIGKILL)
            rank.process.kill()  # it may not have made its group yet
            rank.process.join()
            rank.process.close()
        self._folder.cleanup()

    def _send(self, message: Any) -> None:
        for rank in self._ranks:
            with contextlib.suppress(BrokenPipeError):  # it is dead, which whoever waits for its answer will see
                rank.connection.send(message)

    def _gather(self, timeout: float) -> dict[int, Report]:
        """Every rank's result, or the `MeshError` of the first failure."""
        deadline = time.monotonic() + timeout
        running = list(self._ranks)
        reports: dict[int, Report] = {}
        while running:
            if not wait(_handles(running), max(0.0, deadline - time.monotonic())):
                raise MeshError(self._late(running, timeout))
            for rank in [r for r in running if wait(r.handles, 0.0)]:
                running.remove(rank)
                report = rank.received()
                if report is None:
                    raise MeshError(self._death(rank))
                if report.kind == "error":
                    raise MeshError(self._failure(rank, report, running))
                reports[rank.index] = report
        return reports

    def _failure(self, rank: _Rank, report: Report, running: Sequence[_Rank]) -> str:
        """The text for a rank that raised, unless a peer has died without a word: then that is what it raised about."""
        deadline = time.monotonic() + _GRACE
        peers = list(running)
        while peers and wait(_handles(peers), max(0.0, deadline - time.monotonic())):
            for peer in [p for p in peers if wait(p.handles, 0.0)]:
                peers.remove(peer)
                if peer.received() is None:
                    return self._death(peer)
        return f"rank {rank.index} of the {self.layout} mesh failed:\n{report.body.decode()}"

    def _death(self, rank: _Rank) -> str:
        rank.process.join(_LEAVE)
        return (
            f"rank {rank.index} of the {self.layout} mesh died with exit code {rank.process.exitcode} before it "
            "returned; what it printed last is on standard error."
        )

    def _late(self, running: Sequence[_Rank], timeout: float) -> str:
        """The text for a time-out: which ranks were not done, and the stack of each."""
        for rank in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(rank.pid, signal.SIGUSR1)
        time.sleep(_GRACE)  # the dump is written by a signal handler, which tells nobody
        late = [rank.index for rank in running]
        done = [index for index in range(self.layout.world_size) if index not in late]
        text = f"ranks {late} of the {self.layout} mesh had not finished after {timeout:g} s; finished: {done}."
        for index in late:
            stack = Path(self._folder.name) / f"stack-{index}"
            text += f"\nrank {index} was at:\n{stack.read_text() if stack.exists() else 'its start'}"
        return text


def _start(index: int, setup: Setup) -> _Rank:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([name for name in _PRELOAD if _exists(name)])
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(index, setup, theirs), name=f"rank-{index}")
    process.start()
    theirs.close()
    assert process.pid is not None  # it has started
    return _Rank(index=index, pid=process.pid, process=process, connection=ours)


def _exists(module: str) -> bool:
    return importlib.util.find_spec(module.partition(".")[0]) is not None


def _handles(ranks: Sequence[_Rank]) -> list[Any]:
    return [handle for rank in ranks for handle in rank.handles]
