"""The ranks of one contender of `loops.py`, as seen by the script that gives out the turns."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch.distributed as dist

_SCRIPT = Path(__file__).with_name("loop_rank.py")
_GRACE = 1.0  # seconds for a rank to end after its peer has


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What one turn took.

    Args:
        wall: seconds, of the slowest rank.
        cpu: seconds of all ranks together.
        losses: of each step, the mean over ranks of what each of them knows.
        memory: bytes that the loop added to the private memory of the rank where it added most, so far.
        traffic: kind of collective -> (calls, bytes of whole tensors) on rank 0; None where they were not counted.
    """

    wall: float
    cpu: float
    losses: Sequence[float]
    memory: int
    traffic: Mapping[str, tuple[int, int]] | None


class Group:
    """The live ranks of one contender. They start with it; `wait` until they are ready, then `take` turns.

    Args:
        name: what the table calls it.
        python: the interpreter of its ranks.
        options: of `loop_rank.py`, without the program.
        size: how many ranks.

    Attributes:
        failure: why it cannot run, if so: the last line that its first failed rank printed.
        turns: those that count.
        losses: of every step so far.
        traffic: of one step, where it was counted.
    """

    def __init__(self, name: str, *, python: str, options: Sequence[str], size: int) -> None:
        self.name, self.failure = name, ""
        self.turns: list[Turn] = []
        self.losses: list[float] = []
        self.traffic: Mapping[str, tuple[int, int]] | None = None
        self._store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self._logs = [tempfile.TemporaryFile("w+") for _ in range(size)]  # noqa: SIM115 # until `close`
        command = [python, str(_SCRIPT), *options]
        self._ranks = [
            subprocess.Popen(
                command,
                env=self._environment(rank, size),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                bufsize=1,
            )
            for rank, log in enumerate(self._logs)
        ]

    def wait(self) -> None:
        """Wait until the loop is built on every rank, or has failed."""
        self._hear()

    def _environment(self, rank: int, size: int) -> dict[str, str]:
        sizes = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": self._store.port, "OMP_NUM_THREADS": 1}
        return {**os.environ, "HF_HUB_OFFLINE": "1", **{name: str(value) for name, value in (sizes | where).items()}}

    def take(self, steps: int, *, count: bool = False) -> Turn | None:
        """So many steps; None where the contender cannot run."""
        if self.failure:
            return None
        for rank in self._ranks:
            assert rank.stdin is not None  # a pipe
            rank.stdin.write(json.dumps({"steps": steps, "count": count}) + "\n")
        reports = self._hear()
        if not reports:
            return None
        losses = [sum(column) / len(column) for column in zip(*(one["losses"] for one in reports), strict=True)]
        self.losses += losses
        return Turn(
            wall=max(one["wall"] for one in reports),
            cpu=sum(one["cpu"] for one in reports),
            losses=losses,
            memory=max(one["memory"] for one in reports),
            traffic=reports[0]["traffic"],
        )

    def _hear(self) -> list[dict[str, Any]]:
        """A line of each rank; none where a rank has died, whose peers then end too."""
        heard = []
        for rank in self._ranks:
            assert rank.stdout is not None  # a pipe
            line = rank.stdout.readline()
            if not line:
                self._fail()
                return []
            heard.append(json.loads(line))
        return heard

    def _fail(self) -> None:
        """End the group; what the rank that failed first printed says why."""
        for rank in self._ranks:  # the others wait for a peer that is gone, or are gone as well
            with suppress(subprocess.TimeoutExpired):
                rank.wait(_GRACE)
        failed = next((index for index, rank in enumerate(self._ranks) if rank.returncode), 0)
        self._logs[failed].seek(0)
        printed = self._logs[failed].read()
        print(f"{self.name}, rank {failed}:\n{printed[-4000:]}", file=sys.stderr)
        lines = [line.strip() for line in printed.splitlines() if line.strip()]
        self.failure = next((line for line in reversed(lines) if "Error" in line), lines[-1] if lines else "no output")
        self.close()

    def median(self, what: str) -> float:
        """The median over its turns of a field of `Turn`."""
        return float(median(getattr(turn, what) for turn in self.turns))

    def close(self) -> None:
        """End the ranks."""
        for rank in self._ranks:
            rank.kill()
            rank.wait()
            for pipe in (rank.stdin, rank.stdout):
                assert pipe is not None
                pipe.close()
        for log in self._logs:
            log.close()


def ratios(ours: Group, other: Group, what: str) -> list[float]:
    """What ours took over what the other took, round by round."""
    return [getattr(a, what) / getattr(b, what) for a, b in zip(ours.turns, other.turns, strict=True)]
