"""Stopping at one and the same step on every rank, on a signal or because the driver asks.

A signal reaches one process, a file is seen by one rank first, and a rank that leaves alone hangs the rest. So every
step posts an all-reduce of whether this rank was asked to stop, and reads the one that the step before posted. That
one has crossed the network while the step computed. No step waits for it, nor for a GPU; the answer is one step late.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def stop_requests(file: Path | None) -> Iterator[Callable[[], bool]]:
    """Within the block SIGTERM, SIGINT and the existence of `file`, which the driver makes, are requests to stop.

    One rank is enough to look for the file after every step; the others pass None.

    Signals are taken in a process's main thread only. Ray runs a train function in another, and ends its workers
    without a signal they could take: there the file is the way.

    Yields:
        A function that says whether this process knows of a request.
    """
    signalled = threading.Event()
    mine = threading.current_thread() is threading.main_thread()
    before = {number: signal.signal(number, lambda *_: signalled.set()) for number in SIGNALS if mine}
    try:
        yield lambda: signalled.is_set() or (file is not None and file.exists())
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StopVote:
    """Makes one rank's request to stop known to every rank at the same step.

    Args:
        requested_here: whether this rank was asked to stop.
        timeout: how long a lost peer may keep the others waiting.
    """

    def __init__(self, requested_here: Callable[[], bool], *, timeout: timedelta) -> None:
        self._requested_here = requested_here
        # A group of its own, on the CPU whatever the run computes on: its operations overlap with the engine's.
        self._group = dist.new_group(backend="gloo", timeout=timeout)
        self._posted: tuple[dist.Work, torch.Tensor] | None = None

    def requested(self) -> bool:
        """Whether any rank was asked to stop a step ago; a collective, called once after every step."""
        answer = self.settle()
        flag = torch.tensor([int(self._requested_here())])
        self._posted = dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._group, async_op=True), flag
        return answer

    def settle(self) -> bool:
        """Waits for the vote under way and gives its answer; a collective, called before the groups are destroyed."""
        if self._posted is None:
            return False
        work, flag = self._posted
        self._posted = None
        work.wait()
        return bool(flag.item())
