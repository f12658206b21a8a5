"""The same run without Ray: as processes of this machine, forked from one that has done the imports (`ranks`)."""

import dataclasses
import os
import signal
import socket
import subprocess
import sys
from multiprocessing.connection import Connection
from typing import Self

from tp2d_train.config import TrainConfig
from tp2d_train.engines import ENGINES
from tp2d_train.launch.ranks import Job
from tp2d_train.outcome import WorkerDied
from tp2d_train.report.progress import EventLog
from tp2d_train.runs.run import Run

HOST = "127.0.0.1"
GRACE_SECONDS = 5.0
# The path of this process comes first, as it is: a script may have changed it.
PROGRAM = "import sys; sys.path[:] = sys.argv[3:]; import tp2d_train.launch.ranks as r; r.main()"


class RankStarter:
    """Starts the process that forks the ranks. It imports what they need while the driver checks the configuration.

    Leaving the `with` block ends the process and the ranks.

    Args:
        config: the settings; `engine` says what to import, `num_workers` how many threads a rank has.
    """

    def __init__(self, config: TrainConfig) -> None:
        threads = max(1, (os.cpu_count() or 1) // config.num_workers)
        self.threads = os.environ.get("OMP_NUM_THREADS", str(threads))
        self._module = ENGINES[config.engine].engine.partition(":")[0]
        self._running = False
        self._start()

    def run(self, job: Job) -> None:
        """Forks the ranks and returns when all have ended.

        Raises:
            WorkerDied: a rank, or the process that forks them, was ended by a signal.
            ProcessRaisedException, ProcessExitedException: of torch; a rank failed.
        """
        if self._process.poll() is not None:
            self._start()
        self._running = True
        try:
            self._pipe.send(job)
            error = self._pipe.recv()
        except (EOFError, ConnectionError):
            code = self._process.wait()
            raise WorkerDied(f"the process that starts the ranks ended with exit code {code}") from None
        finally:
            self._running = False
        if error is not None:
            raise error

    def _start(self) -> None:
        self._socket, theirs = socket.socketpair()
        self._pipe = Connection(os.dup(self._socket.fileno()))
        # To ask for a GPU by its driver would leave a mark that forks do not survive.
        environment = {**os.environ, "OMP_NUM_THREADS": self.threads, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited, until it ignores the signal
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", PROGRAM, str(theirs.fileno()), self._module, *sys.path],
                env=environment,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)  # a thread may read from it, so that closing alone would end nothing
        self._socket.close()
        if not self._running:
            self._process.kill()  # it may still import, and nobody waits for that
        try:
            self._process.wait(2 * GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def spawn(run: Run, starter: RankStarter) -> None:
    """Runs all ranks as processes of this machine, and starts them again up to `max_failures` times.

    Raises:
        ValueError: the machine does not have the devices that the configuration asks for.
        WorkerDied, ProcessRaisedException: a rank failed for the last time.
    """
    from torch.multiprocessing import ProcessExitedException, ProcessRaisedException
    from tp2d_mesh.devices import backend_for

    from tp2d_train.setup.devices import choose_device, count_gpus

    gpus = count_gpus()
    device = choose_device(run.config, gpus=gpus)
    backend = backend_for(device)
    processes = "1 local process" if run.config.num_workers == 1 else f"{run.config.num_workers} local processes"
    what = f"starting {processes} on {device} ({backend}); there are {gpus} GPUs"
    EventLog(run.folder).write("phase", message=what)
    config = dataclasses.replace(run.config, device=device.type)
    for failures in range(config.max_failures + 1):
        try:
            return _attempt(config, starter)
        except (WorkerDied, ProcessExitedException, ProcessRaisedException) as error:
            if failures == config.max_failures:
                raise
            cause = str(error).strip().splitlines()[-1]
            again = f"{cause}; starting again, {failures + 1} of {config.max_failures} times"
            EventLog(run.folder).write("warning", message=again)


def _attempt(config: TrainConfig, starter: RankStarter) -> None:
    import torch.distributed as dist

    # The store lives here, on a port that the system chose: none to guess, none to lose to another run.
    store = dist.TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
    shared = {
        "MASTER_ADDR": HOST,
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # torch's way to say that the store exists already
        "WORLD_SIZE": str(config.num_workers),
        "OMP_NUM_THREADS": starter.threads,
    }
    starter.run(
        Job(
            settings=config.as_dict(),
            environment={**os.environ, **shared},
            modules=[name for name in sys.modules if name.startswith("transformers.")],  # those of this model
            ranks=config.num_workers,
            threads=int(starter.threads),
            grace=GRACE_SECONDS,
        )
    )
