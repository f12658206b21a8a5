"""The worker processes of our own Ray cluster, forked from one that has done their imports while the driver checked.

Ray starts every worker as a new interpreter, and the same seconds of imports pass in each. The runtime environment
may name another executable for them (`py_executable`). Ours is `shim`: it hands the command that Ray meant
to run, its environment and its open files to the process here, which forks and goes on as that command. Where nobody
answers, the shim runs the command as Ray would have. The process here imports nothing of Ray, whose threads would not
live in a fork, and touches no GPU.
"""

import atexit
import contextlib
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Self

from tp2d_train.config import TrainConfig
from tp2d_train.engines import ENGINES
from tp2d_train.launch.ranks import NEEDED, import_all, touched_gpu

# What Ray Train imports besides.
RAY_NEEDED = ("pandas", "pyarrow.fs", "pyarrow.parquet", "fsspec", "aiohttp")
PROGRAM = "import sys; sys.path[:] = sys.argv[4:]; import tp2d_train.launch.workers as r; r.main()"
SHIM = Path(__file__).with_name("shim.py")


class RayWorkerStarter:
    """The process that forks Ray's workers, as long as a `with` block lasts; the workers themselves are Ray's to end.

    Args:
        config: the settings; `engine` says what to import.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="tp2d-")
        self._path = Path(self._folder.name) / "workers"
        module = ENGINES[config.engine].engine.partition(":")[0]
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._path))
        self._listener.listen(64)  # Ray may start workers before the imports are done: they wait here
        self._socket, theirs = socket.socketpair()
        fds = [self._listener.fileno(), theirs.fileno()]
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *map(str, fds), module, *sys.path],
            env={**os.environ, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"},
            stdin=subprocess.DEVNULL,
            pass_fds=fds,
            start_new_session=True,  # as Ray's own processes: a terminal's signals are the driver's
        )
        theirs.close()

    @property
    def executable(self) -> str:
        """What Ray is to run instead of Python, as words of a shell."""
        return f"{sys.executable} -S -E {SHIM} {self._path}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._listener.close()
        self._socket.close()
        self._process.kill()  # it may still import; its workers are Ray's
        self._process.wait()
        self._folder.cleanup()


def main() -> None:
    """The program: its arguments are the numbers of the listening socket and the driver's, and the engine's module."""
    listener, driver = socket.socket(fileno=int(sys.argv[1])), socket.socket(fileno=int(sys.argv[2]))
    import_all((*NEEDED, *RAY_NEEDED, sys.argv[3]))
    if touched_gpu():
        listener.close()
        os._exit(0)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # ended workers leave nothing behind
    gc.collect()
    gc.freeze()  # a collection in a worker would copy every page that it shares with this process
    while driver not in wait([listener, driver]):
        connection, _ = listener.accept()
        with contextlib.suppress(OSError, ValueError):
            command, files = _receive(connection)
            connection.sendall(b"1")
            if os.fork() == 0:
                listener.close()
                driver.close()
                _become(command, files)
            for file in files:
                os.close(file)
        connection.close()
    os._exit(0)


def _receive(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """A shim's command and its three standard files."""
    text, files, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    while not text.endswith(b"\n"):
        more = connection.recv(1 << 20)
        if not more:
            raise ValueError("the shim is gone")
        text += more
    return json.loads(text), files


def _become(command: dict[str, Any], files: list[int]) -> None:
    """Goes on as the Python program that Ray meant to start; does not return. Its end closes the shim's connection."""
    code = 1
    try:
        os.setpgid(0, 0)  # Ray ends a worker by its process group
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        os.chdir(command["folder"])
        os.environ.clear()
        os.environ.update(command["environment"])
        import torch

        if threads := os.environ.get("OMP_NUM_THREADS"):
            torch.set_num_threads(int(threads))  # the variable was read before
        sys.argv[:] = command["words"]
        sys.path[:0] = [str(Path(sys.argv[0]).parent)]
        runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        atexit._run_exitfuncs()
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)
