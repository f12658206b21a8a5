"""Stopping at one and the same step on every rank: on a signal, because the driver asks, or because training failed.

A signal reaches one process, a file is seen by one rank first, and a rank that leaves alone hangs the rest. So every
step posts an all-reduce of whether this rank was asked to stop and of what alarms it, and reads the one that the step
before posted. That one has crossed the network while the step computed. No step waits for it, nor for a GPU; the answer
is one step late.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist

from tp2d_train.training.health import Alarm

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


class Verdict(NamedTuple):
    """What the ranks have agreed on: whether any was asked to stop, and the worst alarm of any."""

    stop: bool = False
    alarm: Alarm = Alarm.NONE


class StopVote:
    """Makes one rank's request to stop, or its alarm, known to every rank at the same step.

    Args:
        requested_here: whether this rank was asked to stop.
        timeout: how long a lost peer may keep the others waiting.
    """

    def __init__(self, requested_here: Callable[[], bool], *, timeout: timedelta) -> None:
        self._requested_here = requested_here
        # A group of its own, on the CPU whatever the run computes on: its operations overlap with the engine's.
        self._group = dist.new_group(backend="gloo", timeout=timeout)
        self._posted: tuple[dist.Work, torch.Tensor] | None = None

    def take(self, alarm: Alarm = Alarm.NONE) -> Verdict:
        """What the ranks said a step ago; a collective, called once after every step with this rank's own alarm."""
        verdict = self.settle()
        numbers = torch.tensor([int(self._requested_here()), int(alarm)])
        self._posted = dist.all_reduce(numbers, dist.ReduceOp.MAX, group=self._group, async_op=True), numbers
        return verdict

    def settle(self) -> Verdict:
        """Waits for the vote under way and gives its result; a collective, called before the groups are destroyed."""
        if self._posted is None:
            return Verdict()
        work, numbers = self._posted
        self._posted = None
        work.wait()
        stop, alarm = numbers.tolist()
        return Verdict(stop=bool(stop), alarm=Alarm(alarm))
