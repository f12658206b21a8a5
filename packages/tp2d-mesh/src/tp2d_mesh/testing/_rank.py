"""One process of `tp2d_mesh.testing.run_on_mesh`: join the mesh, run functions and report, until the caller hangs up.

The caller and a rank talk over one pipe, in turns:

    caller: Job           rank: Report      the function's result or traceback
    caller: TIDY_UP       rank: bool        whether the rank is as it was before the call, so that it may run another

The second turn is for a mesh that lives on, and comes when all ranks have reported: until then a peer may be inside a
collective, which the rank's own check would answer.
"""

import contextlib
import faulthandler
import gc
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist

from tp2d_mesh.layout import Layout
from tp2d_mesh.mesh import Mesh, build_mesh
from tp2d_mesh.testing._pickling import dumps, imported
from tp2d_mesh.testing._state import Snapshot, Surroundings

TIDY_UP = "tidy up"


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a rank is told at its start.

    Args:
        layout: the mesh.
        timeout: seconds, for every process group.
        port: of the caller's TCPStore on 127.0.0.1.
        folder: where a rank that is asked for its stack writes it, as `stack-<rank>`.
    """

    layout: Layout
    timeout: float
    port: int
    folder: str


@dataclass(frozen=True, kw_only=True)
class Job:
    """One call.

    Args:
        module: the name of the function's module.
        file: its file.
        call: the pickled `(function, args, kwargs)`.
        surroundings: the caller's, at the time of the call; the fork server's own may be older.
    """

    module: str
    file: str
    call: bytes
    surroundings: Surroundings


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a rank answers: the pickled result, or the text of the traceback."""

    kind: Literal["result", "error"]
    body: bytes


def serve(index: int, setup: Setup, connection: Connection) -> None:
    """Be rank `index`: answer each job, and stay until the caller hangs up.

    A rank that left as soon as it was done would break its peers' connections, and their complaints would compete
    with the real error.
    """
    _end_with_parent()
    stack = (Path(setup.folder) / f"stack-{index}").open("w")
    faulthandler.register(signal.SIGUSR1, file=stack, all_threads=False)
    rank = _Rank(index, setup)
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            connection.send(rank.report(connection.recv()))
            if connection.recv() == TIDY_UP:
                connection.send(rank.tidy_up())


class _Rank:
    """A process of the mesh; it joins at its first job, whose environment may say how."""

    def __init__(self, index: int, setup: Setup) -> None:
        self._index = index
        self._setup = setup
        self._mesh: Mesh | None = None
        self._snapshot = Snapshot()
        self._threads: set[threading.Thread] = set()

    def report(self, job: Job) -> Report:
        """Run `job`."""
        try:
            report = Report(kind="result", body=self._run(job))
        except BaseException:  # DCP's CheckpointException and SystemExit are failures of a rank too
            report = Report(kind="error", body=traceback.format_exc().encode())
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(AttributeError, ValueError):  # the function has replaced it by None, or closed it
                stream.flush()
        return report

    def _run(self, job: Job) -> bytes:
        job.surroundings.take()
        os.environ.update(self._variables())
        if self._mesh is None:
            self._mesh = self._join()
            self._threads = set(threading.enumerate())
        with imported(job.module, job.file):
            function, args, kwargs = pickle.loads(job.call)
            return dumps(function(self._mesh, *args, **kwargs))

    def _variables(self) -> Mapping[str, str]:
        size, index = str(self._setup.layout.world_size), str(self._index)
        return {
            "RANK": index,
            "LOCAL_RANK": index,
            "WORLD_SIZE": size,
            "LOCAL_WORLD_SIZE": size,
            "OMP_NUM_THREADS": "1",
        }

    def _join(self) -> Mesh:
        setup, timeout = self._setup, timedelta(seconds=self._setup.timeout)
        store = dist.TCPStore("127.0.0.1", setup.port, is_master=False, timeout=timeout)
        size = setup.layout.world_size
        dist.init_process_group("gloo", store=store, rank=self._index, world_size=size, timeout=timeout)
        return build_mesh(setup.layout, device=torch.device("cpu"), timeout=timeout)

    def tidy_up(self) -> bool:
        """Put back what the last function changed; whether that worked and nothing of the function is left.

        A process, a thread that is no daemon, or a process group that does not answer makes the rank unfit for
        another call.
        """
        try:
            self._snapshot.put_back()
            gc.collect()  # engines are held by cycles
            gc.freeze()  # what is alive now is modules and caches: the next collection need not look at it
            return not self._left_threads() and not _left_processes() and self._groups_answer()
        except Exception:  # an unfit rank is ended, whatever the reason
            return False

    def _left_threads(self) -> bool:
        return any(not thread.daemon for thread in set(threading.enumerate()) - self._threads)

    def _groups_answer(self) -> bool:
        """Whether each group of the mesh adds up its members' ones; called by all ranks at the same time."""
        assert self._mesh is not None  # a job has run
        for group in (self._mesh.world_group, self._mesh.dp_group, self._mesh.tp_group):
            ones = torch.ones(1)
            dist.all_reduce(ones, group=group)
            if ones.item() != group.size():
                return False
        return True


def _left_processes() -> bool:
    """Whether this rank's process group has members beside the rank, which moves out of it to see."""
    own = os.getpid()
    os.setpgid(0, os.getpgid(os.getppid()))
    try:
        os.killpg(own, 0)
        return True
    except ProcessLookupError:
        return False
    finally:
        os.setpgid(0, 0)


def _end_with_parent() -> None:
    """Put this rank and what it starts into a process group of its own, and end the group when the parent is gone."""
    os.setpgid(0, 0)
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("a rank of run_on_mesh is a child process")

    def watch(sentinel: int) -> None:
        wait([sentinel])
        with contextlib.suppress(ProcessLookupError):
            os.killpg(os.getpid(), signal.SIGKILL)  # by number: the rank may have moved out of its group
        os._exit(1)

    threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()
