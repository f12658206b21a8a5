"""`run_on_mesh`, the same for a script, and the block in which the ranks that serve them live on."""

import io
import os
import pickle
import runpy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from tp2d_mesh.layout import Layout
from tp2d_mesh.mesh import Mesh
from tp2d_mesh.testing._pickling import describe, dumps
from tp2d_mesh.testing._rank import Job
from tp2d_mesh.testing._ranks import Ranks
from tp2d_mesh.testing._state import Surroundings

# The parent's deadline bounds a call on a live mesh. Its groups outlive many calls, so they wait longer than any.
_GROUP_TIMEOUT = 7 * 24 * 3600.0


def run_on_mesh(
    fn: Callable[..., Any],
    *args: Any,
    dp: int = 1,
    tp: int = 1,
    timeout: float = 60.0,
    fresh: bool = False,
    **kwargs: Any,
) -> list[Any]:
    """Call `fn(mesh, *args, **kwargs)` on dp x tp local gloo processes.

    Args:
        fn: a function at the top level of any file, a test file too; its first argument is the rank's `Mesh`.
        args: pickled; tensors travel by value.
        dp: data-parallel size.
        tp: tensor-parallel size.
        timeout: seconds for the whole call; with new processes also the time-out of every process group.
        fresh: start new processes for this call inside `reuse_ranks` too. Give it to a function that measures memory,
            patches modules, looks at what has been imported, or needs a library to read the environment anew.
        kwargs: pickled, like `args`.

    Returns:
        Every rank's result, in rank order; tensors are detached CPU tensors.

    Raises:
        MeshError: a rank raised (the message ends in the traceback of the first that did), died, or had not finished
            in time (the message says which ranks, and where each of them stood). No process that `fn` started
            outlives the call, and no rank does, unless `reuse_ranks` keeps it.
        ValueError: `fn` cannot be found by another process, or a size is not a positive integer.
    """
    layout = Layout(dp=dp, tp=tp)
    module, file = describe(fn)
    job = Job(module=module, file=file, call=dumps((fn, args, kwargs)), surroundings=Surroundings.of_now())
    live = None if fresh else _LIVE.get()
    if live is None or live.owner != os.getpid():  # a fork of the owner has the same pipes in hand
        bodies = _run_once(layout, job, timeout=timeout)
    else:
        bodies = live.call(layout, job, timeout=timeout)
    return [pickle.loads(body) for body in bodies]


def run_script(path: str | Path, *, dp: int = 1, tp: int = 1, timeout: float = 60.0) -> list[str]:
    """Run a script that `torchrun` would start, as `__main__` of every rank; `build_mesh` joins the ranks' own groups.

    Args:
        path: the script.
        dp: data-parallel size.
        tp: tensor-parallel size.
        timeout: seconds for the whole script.

    Returns:
        What each rank printed to `sys.stdout`, in rank order.

    Raises:
        MeshError: as `run_on_mesh`.
    """
    return run_on_mesh(_printed, str(path), dp=dp, tp=tp, timeout=timeout)


def _printed(mesh: Mesh, path: str) -> str:
    with redirect_stdout(io.StringIO()) as out:
        runpy.run_path(path, run_name="__main__")
    return out.getvalue()


@contextmanager
def reuse_ranks(*, layouts: int = 3) -> Iterator[None]:
    """Within the block, the same ranks serve this thread's `run_on_mesh` calls of one layout, one after another.

    Between calls a rank puts back what a function changed of the process: environment, working directory, `sys.path`,
    signal handlers, resource limits, warning filters, the root logger, torch's default dtype, grad mode and
    deterministic flags, and the random states of torch, numpy and Python, which every call finds as in a new process.
    A module's globals stay as the function left them.

    A mesh ends with the call that raises, times out, or leaves behind a process, a thread that is no daemon, or groups
    that do not answer; the next call starts another. Process groups of its own that a function does not destroy stay
    open.

    Args:
        layouts: how many meshes stay alive; the one not used for longest ends first.
    """
    live = _LiveRanks(layouts=layouts)
    token = _LIVE.set(live)
    try:
        yield
    finally:
        _LIVE.reset(token)
        live.end()


def _run_once(layout: Layout, job: Job, *, timeout: float) -> list[bytes]:
    """The results of `job` on new processes, which end with it."""
    ranks = Ranks(layout, timeout=timeout)
    finished = False
    try:
        bodies = ranks.call(job, timeout=timeout)
        finished = True
        return bodies
    finally:
        ranks.end(wait_for_exit=finished)


class _LiveRanks:
    """The meshes of a `reuse_ranks` block, least recently used first."""

    def __init__(self, *, layouts: int) -> None:
        self.owner = os.getpid()
        self._layouts = layouts
        self._meshes: dict[Layout, Ranks] = {}

    def call(self, layout: Layout, job: Job, *, timeout: float) -> list[bytes]:
        """The results of `job` on the live mesh of `layout`, which is started where there is none."""
        ranks = self._take(layout)
        finished = fit = False
        try:
            bodies = ranks.call(job, timeout=timeout)
            finished = True
            fit = ranks.tidy_up()
            return bodies
        finally:
            if fit:
                self._meshes[layout] = ranks
            else:
                ranks.end(wait_for_exit=finished)

    def _take(self, layout: Layout) -> Ranks:
        """The mesh of `layout`, out of the table."""
        ranks = self._meshes.pop(layout, None)
        if ranks is not None and ranks.idle():
            return ranks
        if ranks is not None:  # a rank has died since its last call
            ranks.end(wait_for_exit=False)
        while len(self._meshes) >= self._layouts:
            self._meshes.pop(next(iter(self._meshes))).end(wait_for_exit=True)
        return Ranks(layout, timeout=_GROUP_TIMEOUT)

    def end(self) -> None:
        """End every mesh."""
        while self._meshes:
            self._meshes.popitem()[1].end(wait_for_exit=True)


_LIVE: ContextVar[_LiveRanks | None] = ContextVar("tp2d_mesh_live_ranks", default=None)
