"""Local ranks that add a number up: whether processes start here, find each other, and compute the right sum."""

import os
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing import (
    ProcessContext,
    ProcessExitedException,
    ProcessRaisedException,
    get_context,
    start_processes,
)
from tp2d_mesh.devices import activate, backend_for

from tp2d_train.doctor.finding import Finding, Level
from tp2d_train.doctor.storage import DRIVER, leave_mark, sees_mark, shared

HOST = "127.0.0.1"
SECONDS = 100.0  # for the ranks to start and to add up: 5 on an idle machine
ELEMENTS = 1 << 20
Answer = tuple[str, float, bool]


def check_ranks(num_workers: int, *, device: torch.device, folder: Path | None) -> Iterator[Finding]:
    """An all-reduce over new local processes; they see the driver's file in the storage, and it sees theirs.

    Args:
        num_workers: how many ranks.
        device: the kind of device on which each computes.
        folder: a scratch folder in the storage; None where there is none, and nothing is said of it.
    """
    if folder is not None:
        leave_mark(folder, DRIVER)
    start = time.monotonic()
    try:
        answers = _answers(num_workers, device=device, folder=folder)
    except (ProcessExitedException, ProcessRaisedException, TimeoutError) as error:
        yield _failed(num_workers, device, error)
        return
    yield _sum(answers, device=device, seconds=time.monotonic() - start)
    if folder is not None:
        yield shared(folder, workers={who: saw for who, _, saw in answers}, who="local ranks")


def _answers(num_workers: int, *, device: torch.device, folder: Path | None) -> list[Answer]:
    """What each rank says.

    Raises:
        ProcessExitedException, ProcessRaisedException: a rank failed.
        TimeoutError: they have not come to an end.
    """
    store = dist.TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
    queue = get_context("spawn").SimpleQueue()
    context = start_processes(
        _rank,
        (num_workers, store.port, device.type, folder, queue),
        nprocs=num_workers,
        join=False,
        daemon=True,
        start_method="spawn",
    )
    try:
        _join(context, deadline=time.monotonic() + SECONDS)
    finally:
        for process in context.processes:
            process.kill()
            process.join()
    return [queue.get() for _ in range(num_workers)]


def _join(context: ProcessContext, *, deadline: float) -> None:
    while not context.join(timeout=max(0.0, deadline - time.monotonic()), grace_period=1.0):
        if time.monotonic() >= deadline:
            raise TimeoutError(f"not done after {SECONDS:.0f} s")


def _rank(rank: int, world: int, port: int, kind: str, folder: Path | None, queue: Any) -> None:
    """One rank: the sum of 1 to `world`, and the files."""
    os.environ.update(MASTER_ADDR=HOST, LOCAL_RANK=str(rank), OMP_NUM_THREADS="1")
    device = torch.device(kind, rank) if kind != "cpu" else torch.device("cpu")
    activate(device)
    timeout = timedelta(seconds=SECONDS / 2)
    store = dist.TCPStore(HOST, port, is_master=False, timeout=timeout)
    dist.init_process_group(backend_for(device), store=store, rank=rank, world_size=world, timeout=timeout)
    numbers = torch.full((ELEMENTS,), float(rank + 1), device=device)
    dist.all_reduce(numbers)
    right = world * (world + 1) / 2
    worst = (numbers - right).abs().max().item()
    who, saw = f"rank-{rank}", False
    if folder is not None:
        saw = sees_mark(folder, DRIVER)
        leave_mark(folder, who)
    queue.put((who, worst, saw))
    dist.barrier()
    dist.destroy_process_group()


def _sum(answers: list[Answer], *, device: torch.device, seconds: float) -> Finding:
    wrong = [f"{who} is off by {error:g}" for who, error, _ in answers if error]
    what = f"all-reduce over {len(answers)} local ranks on {device.type} ({backend_for(device)})"
    if wrong:
        mend = "a sum over the ranks cannot be trusted here: check the network, NCCL and the GPUs"
        return Finding(level=Level.PROBLEM, check="ranks", text=f"{what}: {', '.join(wrong)}", mend=mend)
    return Finding(check="ranks", text=f"{what}: right, {seconds:.1f} s with their start")


def _failed(num_workers: int, device: torch.device, error: Exception) -> Finding:
    reason = str(error).strip().splitlines()[-1]
    mend = "look at the firewall of 127.0.0.1 and at free memory"
    if device.type != "cpu":
        mend = "set NCCL_DEBUG=INFO and run it again"
    text = f"all-reduce over {num_workers} local ranks on {device.type} ({backend_for(device)}): {reason}"
    return Finding(level=Level.PROBLEM, check="ranks", text=text, mend=mend)
