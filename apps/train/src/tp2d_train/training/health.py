"""Whether a run is sound: steps that were skipped because their gradient was not finite, and spikes of the loss.

No step waits for these numbers. They are copied to the host behind the step's work and looked at when they have
arrived: on a GPU some steps late, on the CPU at once. Ranks may look at other times, so what follows from them is
decided by the vote that also stops a run (`training.stop`), and is the same on every rank.

A checkpoint is sound if the step after it was good: a step with a ruinous update still has a finite loss of its own.
"""

import dataclasses
import enum
import math
import statistics
from collections import deque
from typing import Any, Self

import torch
from tp2d_mesh import StepStats
from tp2d_mesh.devices import HostCopy

from tp2d_train.config import TrainConfig

WINDOW, LEAST = 64, 16
DEVIATIONS, SHARE = 8.0, 0.1
SIGMA = 1.4826  # of a normal distribution, in median absolute deviations


class Alarm(enum.IntEnum):
    """Why a run has to end; the worst has the highest number."""

    NONE = 0
    SPIKE = 1
    SKIPPED = 2


@dataclasses.dataclass(kw_only=True)
class Health:
    """What is known of the steps so far, in their order. The fields are saved with the run.

    Args:
        skipped: steps that were skipped, in all.
        in_a_row: those since the last step that was applied.
        skipped_from: the first step of the last row of skipped ones; None: there was none.
        trouble_at: the first step of the run that was skipped or had a spike; None: there was none.
        spiking: whether the last loss was above what `limit` allows.
        last_loss: the last finite loss of a step that was applied.
        losses: the last losses of applied steps, at most `WINDOW`.
    """

    skipped: int = 0
    in_a_row: int = 0
    skipped_from: int | None = None
    trouble_at: int | None = None
    spiking: bool = False
    last_loss: float | None = None
    losses: list[float] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self._arriving: deque[tuple[int, HostCopy]] = deque()
        self._notices: list[tuple[str, int, str]] = []
        self._longest_row = 0  # of this start
        self._spike: str | None = None  # the last one of this start

    def observe(self, step: int, stats: StepStats) -> None:
        """Lets a step's numbers come to the host behind the work that makes them, and takes those that have arrived."""
        numbers = torch.stack([stats.loss.double(), stats.skipped.double()])
        self._arriving.append((step, HostCopy(numbers)))
        self._take(wait=False)

    def settle(self) -> None:
        """Waits for the numbers of every step; called where the run waits for the device in any case."""
        self._take(wait=True)

    def alarm(self, config: TrainConfig) -> Alarm:
        """Whether what has happened in this start ends the run."""
        if self._longest_row >= config.max_skipped_steps:
            return Alarm.SKIPPED
        return Alarm.SPIKE if self._spike is not None and config.on_spike == "stop" else Alarm.NONE

    def describe(self, alarm: Alarm) -> str:
        """What has happened, in one sentence."""
        if alarm is Alarm.SPIKE:
            return f"{self._spike} (on_spike=stop)."
        row = max(self.in_a_row, self._longest_row)
        steps = "1 step was skipped" if row == 1 else f"{row} steps in a row were skipped"
        last = "there was no loss before" if self.last_loss is None else f"the last loss was {self.last_loss:.4g}"
        return f"{steps}, from step {self.skipped_from} on, because the gradient is not finite; {last}."

    def notices(self) -> list[tuple[str, int, str]]:
        """What has happened since the last call: the kind of event (`skipped`, `spike`), the step, and a sentence."""
        notices, self._notices = self._notices, []
        return notices

    def as_dict(self) -> dict[str, Any]:
        """The state for a checkpoint, as JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The counterpart of `as_dict`."""
        return cls(**values)

    def _take(self, *, wait: bool) -> None:
        while self._arriving and (wait or self._arriving[0][1].has_arrived()):
            step, copy = self._arriving.popleft()
            loss, skipped = copy.numbers()
            if skipped:
                self._add_skipped(step)
            else:
                self._add_applied(step, loss)

    def _add_skipped(self, step: int) -> None:
        self.skipped_from = self.skipped_from if self.in_a_row else step
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        self._longest_row = max(self._longest_row, self.in_a_row)
        self.trouble_at = step if self.trouble_at is None else self.trouble_at
        row = f", {self.in_a_row} in a row" if self.in_a_row > 1 else ""
        self._notices.append(("skipped", step, f"step {step} was skipped{row}: its gradient is not finite"))

    def _add_applied(self, step: int, loss: float) -> None:
        self.in_a_row = 0
        if not math.isfinite(loss):
            return  # a step without a label
        limit = self.limit()
        spiking = limit is not None and loss > limit
        if spiking and not self.spiking:
            self.trouble_at = step if self.trouble_at is None else self.trouble_at
            before = f"the median of the {len(self.losses)} before is {statistics.median(self.losses):.4g}"
            self._spike = f"the loss {loss:.4g} of step {step} is a spike, {before}"
            self._notices.append(("spike", step, self._spike))
        self.spiking, self.last_loss = spiking, loss
        self.losses = [*self.losses, loss][-WINDOW:]

    def limit(self) -> float | None:
        """The loss above which the next step is a spike; None while too few steps are known.

        Eight standard deviations above the median, the deviation taken from the median absolute deviation, so that
        neither follows the spikes themselves; and at least a tenth above, for losses that hardly vary.
        """
        if len(self.losses) < LEAST:
            return None
        median = statistics.median(self.losses)
        deviation = SIGMA * statistics.median(abs(loss - median) for loss in self.losses)
        return median + max(DEVIATIONS * deviation, SHARE * abs(median))
