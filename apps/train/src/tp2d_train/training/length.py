"""How long a run and its epochs are: pure arithmetic on numbers that are equal on all ranks.

`tp2d_train.steps` has the steps of an epoch. The length of a stream's epoch is not known before it ends.
"""

import dataclasses
from typing import Self

from tp2d_train.config import TrainConfig
from tp2d_train.steps import epoch_steps
from tp2d_train.training.state import RunState


@dataclasses.dataclass(frozen=True, kw_only=True)
class Length:
    """The length of a run.

    Args:
        num_epochs: epochs of the run.
        max_steps: optimizer steps after which it ends all the same; None: no limit.
        epoch_steps: optimizer steps of a whole epoch; None: not known. A run then has `max_steps`.
    """

    num_epochs: int
    max_steps: int | None
    epoch_steps: int | None

    @classmethod
    def of(cls, config: TrainConfig, *, micro_batches: int | None) -> Self:
        """The length that the configuration asks for, with so many micro-batches in an epoch; None: a stream."""
        steps = epoch_steps(config, micro_batches=micro_batches)
        return cls(num_epochs=config.num_epochs, max_steps=config.max_steps, epoch_steps=steps)

    def total_steps(self, run: RunState) -> int:
        """The step at which a run that is now at `run` will end."""
        if self.epoch_steps is None:
            return max(self.max_steps or 0, run.step)
        left = (self.num_epochs - run.epoch) * self.epoch_steps - run.epoch_step
        total = run.step + max(0, left)
        return total if self.max_steps is None else min(total, self.max_steps)

    def steps_left(self, run: RunState) -> int:
        """The most steps left to do in the epoch of `run`."""
        left = run.total_steps - run.step
        return left if self.epoch_steps is None else min(left, self.epoch_steps - run.epoch_step)

    def epoch_is_whole(self, run: RunState) -> bool:
        """Whether an epoch that has no more steps to do is complete; else the run's last step came first."""
        return run.step < run.total_steps if self.epoch_steps is None else run.epoch_step >= self.epoch_steps

    def is_complete(self, run: RunState) -> bool:
        """Whether the run has all its epochs or all its steps."""
        return run.epoch >= self.num_epochs or (self.max_steps is not None and run.step >= self.max_steps)
