"""The Ray cluster of RAY_ADDRESS: whether it answers, what its nodes have, and whether all see one storage."""

import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tp2d_train.doctor.finding import Finding, Level
from tp2d_train.doctor.storage import DRIVER, leave_mark, mark, shared

KNOCK_SECONDS = 3.0
CONNECT_SECONDS = 30.0
TASK_SECONDS = 60.0


def check_cluster(folder: Path | None) -> Iterator[Finding]:
    """A line of the nodes and their resources, and what every node sees of the storage.

    Args:
        folder: a scratch folder in the storage; None where there is none, and nothing is said of it.
    """
    import ray

    address = os.environ["RAY_ADDRESS"]
    logging = ray.LoggingConfig(log_level="ERROR")
    problem = _knock(address) or _in_time(
        lambda: ray.init(logging_config=logging, log_to_driver=False), seconds=CONNECT_SECONDS
    )
    if problem is not None:
        text = f"no Ray cluster answers at RAY_ADDRESS {address}: {problem}"
        yield Finding(level=Level.PROBLEM, check="cluster", text=text, mend="unset it, or start one with `ray start`")
        return
    try:
        nodes = [node for node in ray.nodes() if node["Alive"]]
        yield Finding(check="cluster", text=f"{len(nodes)} nodes: {', '.join(map(_resources, nodes))}")
        if folder is not None:
            yield _storage(nodes, folder)
    finally:
        ray.shutdown()


def _knock(address: str) -> str | None:
    """Why nothing takes a connection at `host:port`, which Ray would take half a minute to say; None where it does."""
    place = re.fullmatch(r"(?:ray://)?([^/:]+):(\d+)", address)
    if place is None:  # `auto`, and what only Ray understands
        return None
    try:
        socket.create_connection((place[1], int(place[2])), timeout=KNOCK_SECONDS).close()
    except OSError as error:
        return str(error)
    return None


def _in_time(act: Callable[[], object], *, seconds: float) -> str | None:
    """Why `act` did not succeed, None where it did; after the time it is left behind in a thread that nobody joins."""
    problems: list[str] = [f"nothing within {seconds:.0f} s"]

    def run() -> None:
        try:
            act()
        except Exception as error:  # any reason is as good: it is shown
            problems.append(f"{type(error).__name__}: {error}".splitlines()[0])
        else:
            problems.clear()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    return problems[-1] if problems else None


def _resources(node: dict[str, Any]) -> str:
    has = node["Resources"]
    gpus = f", {has['GPU']:.0f} GPUs" if "GPU" in has else ""
    return f"{node['NodeManagerAddress']} ({has.get('CPU', 0):.0f} CPUs{gpus})"


def _storage(nodes: list[dict[str, Any]], folder: Path) -> Finding:
    """One task a node reads the driver's file and leaves one of its own."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    def look(place: Path, driver: str, own: str, who: str) -> bool:  # in here: a node needs nothing of ours to run it
        saw = (place / driver).exists()
        if saw:
            (place / own).write_text(who)
        return saw

    leave_mark(folder, DRIVER)
    task = ray.remote(look)
    names = [f"node-{node['NodeManagerAddress']}" for node in nodes]
    places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    tasks = [
        task.options(num_cpus=0, scheduling_strategy=place).remote(folder, mark(DRIVER), mark(name), name)
        for name, place in zip(names, places, strict=True)
    ]
    try:
        saw = dict(zip(names, ray.get(tasks, timeout=TASK_SECONDS), strict=True))
    except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError) as error:
        text = f"a task on every node did not come back: {str(error).strip().splitlines()[-1]}"
        mend = "look at `ray status` and at the log of the node"
        return Finding(level=Level.PROBLEM, check="same storage", text=text, mend=mend)
    return shared(folder, workers=saw, who="nodes")
