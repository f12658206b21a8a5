"""One process of `tp2d_mesh.testing.run_on_mesh`: join the mesh, run the function, report, wait to be ended."""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import importlib.util
import io
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from tp2d_mesh.layout import Layout
from tp2d_mesh.mesh import build_mesh


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every rank is told.

    Args:
        layout: the mesh.
        timeout: seconds, for every process group.
        port: of the parent's TCPStore on 127.0.0.1.
        module, file: where the function is defined.
        call: the pickled ``(function, args, kwargs)``.
        environment: the parent's, at the time of the call; the fork server's own may be older.
        folder: where a rank that is asked for its stack writes it, as ``stack-<rank>``.
    """

    layout: Layout
    timeout: float
    port: int
    module: str
    file: str
    call: bytes
    environment: Mapping[str, str]
    folder: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a rank answers: the pickled result, or the text of the traceback."""

    kind: Literal["result", "error"]
    body: bytes


def serve(rank: int, job: Job, connection: Connection) -> None:
    """Run `job` as `rank`, send one `Report`, and stay until the parent hangs up.

    A rank that left as soon as it was done would break its peers' connections, and their complaints would compete
    with the real error.
    """
    _end_with_parent()
    stack = (Path(job.folder) / f"stack-{rank}").open("w")
    faulthandler.register(signal.SIGUSR1, file=stack, all_threads=False)
    try:
        report = Report(kind="result", body=dumps(_run(rank, job)))
    except BaseException:  # DCP's CheckpointException and SystemExit are failures of a rank too
        report = Report(kind="error", body=traceback.format_exc().encode())
    sys.stdout.flush()
    sys.stderr.flush()
    connection.send(report)
    with contextlib.suppress(EOFError):
        connection.recv()


def _run(rank: int, job: Job) -> Any:
    size = str(job.layout.world_size)
    os.environ.clear()
    os.environ.update(job.environment)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=size, LOCAL_WORLD_SIZE=size, OMP_NUM_THREADS="1")
    torch.set_num_threads(1)
    timeout = timedelta(seconds=job.timeout)
    store = dist.TCPStore("127.0.0.1", job.port, is_master=False, timeout=timeout)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=job.layout.world_size, timeout=timeout)
    mesh = build_mesh(job.layout, device=torch.device("cpu"), timeout=timeout)
    _import(job.module, job.file)
    function, args, kwargs = pickle.loads(job.call)
    return function(mesh, *args, **kwargs)


def _import(name: str, file: str) -> None:
    """Import `file` as module `name`, so that what it defines pickles by name in both directions.

    A test file is often not importable by the name that pytest gave it, or another file is: then it is loaded by path.
    """
    if name == "__main__":  # multiprocessing has imported the parent's main file already
        return
    with contextlib.suppress(ModuleNotFoundError):  # raised again below if it is an import inside the file
        if getattr(importlib.import_module(name), "__file__", None) == file:
            return
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot load {name} from {file}")
    for end in (i for i, letter in enumerate(name) if letter == "."):  # pickle looks for the parents too
        sys.modules.setdefault(name[:end], types.ModuleType(name[:end]))
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def _end_with_parent() -> None:
    """Put this rank and what it starts into a process group of its own, and end the group when the parent is gone."""
    os.setpgid(0, 0)
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("a rank of run_on_mesh is a child process")

    def watch(sentinel: int) -> None:
        wait([sentinel])
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()


class _Pickler(pickle.Pickler):
    """Pickles tensors by value as plain CPU tensors.

    multiprocessing's own way hands over shared memory, which is gone when the sender has exited.
    """

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, DTensor):
            raise TypeError("run_on_mesh cannot return a DTensor: return .full_tensor() or .to_local() of it.")
        if not isinstance(obj, torch.Tensor) or isinstance(obj, torch.nn.Parameter):
            return NotImplemented  # a Parameter's own way leads here again, with its data
        buffer = io.BytesIO()
        torch.save(obj.detach().cpu().clone(), buffer)  # cloned: a view would bring all of its storage
        return _tensor, (buffer.getvalue(),)


def _tensor(data: bytes) -> torch.Tensor:
    return torch.load(io.BytesIO(data), weights_only=True)


def dumps(obj: Any) -> bytes:
    """Pickle `obj`; ``pickle.loads`` reads it in any process that can import what it names."""
    buffer = io.BytesIO()
    _Pickler(buffer).dump(obj)
    return buffer.getvalue()


def describe(function: Callable[..., Any]) -> tuple[str, str]:
    """The module name and file of a function that another process can find.

    Raises:
        ValueError: it is a lambda, is defined inside a function, or in no file.
    """
    function = getattr(function, "func", function)  # functools.partial
    name = getattr(function, "__qualname__", repr(function))
    module = sys.modules.get(getattr(function, "__module__", ""))
    file = getattr(module, "__file__", None)
    if module is None or file is None or "<" in name:
        raise ValueError(
            f"run_on_mesh cannot send {name} to other processes: define it at the top level of a file and give it what "
            "it needs as arguments."
        )
    return module.__name__ if module is not sys.modules["__main__"] else "__main__", file
