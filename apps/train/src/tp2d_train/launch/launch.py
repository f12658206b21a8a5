"""From a configuration to a finished run: check, start the workers, show what they do, say how it ended."""

import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from tp2d_train.config import TrainConfig
from tp2d_train.launch.joined import find_world, join
from tp2d_train.launch.local import RankStarter, spawn
from tp2d_train.launch.view import live_view, say
from tp2d_train.outcome import Diverged, Result, RunFailed, RunStopped, WorkerDied
from tp2d_train.report.logs import set_log_level
from tp2d_train.report.progress import EventLog
from tp2d_train.runs.run import Run
from tp2d_train.setup.check import check

# Usage reports need a network, the preemption watcher a cloud, Ray Train's metrics a dashboard. Workers that Ray starts
# in advance lack the environment of Ray Train's workers, so none is ever used. Ray Train notices a reported checkpoint
# and the end of a run only when it polls the workers, so it polls more often. The token keeps other users out.
RAY_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_AUTH_MODE": "token",
}


def train(config: TrainConfig) -> Result:
    """Trains as configured, and returns when the run is complete. The command line is a thin cover of this.

    Raises:
        ValueError: the configuration cannot work; nothing was started.
        RunFailed: a worker failed, or died without raising.
        RunStopped: SIGINT or SIGTERM asked to stop, and the run saved first.
    """
    set_log_level(config.log_level)
    world = find_world(os.environ)
    if config.launcher == "local" and world is not None:
        return join(config, world)
    with _launcher(config) as launch:
        run = check(config, progress=say(config))
        if run.finished:
            print(run.finished_message())
            return Result(path=run.path, summary=run.summary())
        with run.locked():
            run.start()
            print(run.start_message(), flush=True)
            return _watch(run, launch)


@contextlib.contextmanager
def _launcher(config: TrainConfig) -> Iterator[Callable[[Run], None]]:
    """A function that starts the ranks of a run. Within the block the local launcher imports what ranks need."""
    if config.launcher == "local":
        with RankStarter(config) as starter:
            yield partial(spawn, starter=starter)
    else:
        yield _fit


def _fit(run: Run) -> None:
    EventLog(run.folder).write("phase", message="starting Ray")
    _quiet_ray()
    from tp2d_train.launch.ray import fit  # late: it takes seconds, and a local run needs no Ray

    fit(run)


def _quiet_ray() -> None:
    """Sets Ray's environment for a cluster of our own, before Ray is imported; what the user has set stays."""
    if "ray" not in sys.modules and not os.environ.get("RAY_ADDRESS"):
        for name, value in RAY_ENVIRONMENT.items():
            os.environ.setdefault(name, value)


def _watch(run: Run, launch: Callable[[Run], None]) -> Result:
    """Runs the launcher in a thread, so that signals reach this one, and turns the run's last event into an ending."""
    errors: list[BaseException] = []
    thread = threading.Thread(target=_collect, args=(launch, run, errors), daemon=True)
    with live_view(run) as view, stop_on_signals(run.folder.stop) as signals:
        thread.start()
        while thread.is_alive():
            thread.join(0.2)  # a join without an end would keep signals waiting
    outcome = view.outcome or {"event": "nothing"}
    if outcome["event"] == "stopped" and not errors:
        number = signals[0] if signals else signal.SIGTERM  # somebody else may have made the file
        raise RunStopped(f"stopped; {run.next_command()}", signal=number)
    if errors or outcome["event"] != "finished":
        raise _failure(run, outcome, errors[0] if errors else None)
    return Result(path=run.path, summary=run.summary())


def _collect(launch: Callable[[Run], None], run: Run, errors: list[BaseException]) -> None:
    try:
        launch(run)
    except BaseException as error:
        errors.append(error)


def _failure(run: Run, outcome: Mapping[str, Any], error: BaseException | None) -> Exception:
    """The error of a run that did not finish: a lost worker, else a worker's own account, else the launcher's."""
    if isinstance(error, ValueError):
        return error  # the cluster cannot hold the run; nothing has started
    diverged = outcome["event"] == "failed" and outcome["error"] == Diverged.__name__
    if diverged:
        cause, details = f"training diverged: {outcome['message']}", outcome["traceback"]
    elif outcome["event"] == "failed" and not isinstance(error, WorkerDied):
        cause = f"rank {outcome['rank']} on {outcome['host']} failed: {outcome['error']}: {outcome['message']}"
        details = outcome["traceback"]
    else:
        cause = str(error or "the workers ended without an error").strip()
        details = "".join(traceback.format_exception(error)) if error else ""
    log = run.folder.failure
    log.write_text(f"{cause}\n\n{details}\n", encoding="utf-8")
    if diverged:
        return RunFailed(cause)  # it says itself where to go on
    return RunFailed(f"{cause.splitlines()[-1]} (details: {log}; {run.next_command()})")


@contextlib.contextmanager
def stop_on_signals(stop_file: Path) -> Iterator[list[int]]:
    """Within the block the first SIGINT or SIGTERM asks the workers to save and leave; the second one kills.

    Python gives signals to a program's main thread only; elsewhere nothing is changed.

    Yields:
        The numbers of the signals so far.
    """
    if threading.current_thread() is not threading.main_thread():
        yield []
        return
    received: list[int] = []
    out = sys.stdout  # as it is now: a launcher may send it elsewhere for a while

    def handle(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt
        print("stopping: the workers save and leave (once more: at once, without saving)", file=out, flush=True)
        stop_file.touch()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
