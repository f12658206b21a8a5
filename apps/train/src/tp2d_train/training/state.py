"""Where a run is: what has to be saved so that it goes on as if it had never stopped."""

import dataclasses
import math
from typing import Any, Self

import torch
from tp2d_mesh import StepStats

from tp2d_train.report.meter import Number
from tp2d_train.training.health import Health


@dataclasses.dataclass(kw_only=True)
class RunState:
    """The counters and sums of a run; those that a step adds to stay on the device until somebody reads them.

    Args:
        step: completed optimizer steps of the run.
        epoch: the epoch under way, from 0; equal to the number of epochs when all are done.
        epoch_step: completed optimizer steps of that epoch.
        tokens: predicted tokens so far, those of skipped steps too.
        positions: all positions so far, labelled or not.
        epoch_tokens: the predicted tokens of this epoch's applied steps.
        epoch_loss_sum: the loss of this epoch, summed over those tokens in float64.
        mean_loss: of the last whole epoch, None before its end.
        last_loss: of the last applied step, None before the first step.
        best_loss: the lowest of a step.
        evaluated_at: the step of the last evaluation.
        eval_loss: of the last evaluation.
        best_eval_loss: the lowest of an evaluation.
        total_steps: the step at which the run and its schedule end, 0 before the loop has set it.
        health: skipped steps and spikes of the loss.
    """

    step: int = 0
    epoch: int = 0
    epoch_step: int = 0
    tokens: Number = 0
    positions: Number = 0
    epoch_tokens: Number = 0
    epoch_loss_sum: Number = 0.0
    mean_loss: float | None = None
    last_loss: Number | None = None
    best_loss: Number | None = None
    evaluated_at: int | None = None
    eval_loss: float | None = None
    best_eval_loss: float | None = None
    total_steps: int = 0
    health: Health = dataclasses.field(default_factory=Health)

    def add(self, stats: StepStats) -> None:
        """Counts a completed step, without waiting for the device."""
        loss, applied = stats.loss.double(), ~stats.skipped
        self.step += 1
        self.epoch_step += 1
        self.tokens = self.tokens + stats.tokens
        self.positions = self.positions + stats.positions
        # A step without a label has no mean loss, and adds nothing; nor does one that was skipped.
        counts = applied & (stats.tokens > 0)
        self.epoch_tokens = self.epoch_tokens + torch.where(counts, stats.tokens, 0)
        self.epoch_loss_sum = self.epoch_loss_sum + torch.where(counts, loss * stats.tokens, 0.0)
        self.last_loss = torch.where(applied, loss, _like(self.last_loss, loss))
        self.best_loss = torch.fmin(torch.where(applied, loss, math.nan), _like(self.best_loss, loss))
        self.health.observe(self.step, stats)

    def add_evaluation(self, loss: float) -> None:
        """Notes the held-out loss after the present step."""
        self.evaluated_at, self.eval_loss = self.step, loss
        self.best_eval_loss = loss if self.best_eval_loss is None else min(self.best_eval_loss, loss)

    def epoch_loss(self) -> float | None:
        """The mean loss over this epoch's tokens so far, None before the first step; waits for the device."""
        return float(self.epoch_loss_sum) / float(self.epoch_tokens) if self.epoch_step and self.epoch_tokens else None

    def end_epoch(self) -> None:
        """Goes on to the next epoch; one without a step leaves no mean loss."""
        self.mean_loss = self.epoch_loss() if self.epoch_step else self.mean_loss
        self.epoch, self.epoch_step = self.epoch + 1, 0
        self.epoch_tokens, self.epoch_loss_sum = 0, 0.0

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers by name, for JSON; waits for the device."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        plain = {name: value.item() if isinstance(value, torch.Tensor) else value for name, value in values.items()}
        return plain | {"health": self.health.as_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The counterpart of `as_dict`; what an older version of this program did not save begins anew."""
        return cls(**values | {"health": Health.from_dict(values.get("health", {}))})


def _like(value: Number | None, loss: torch.Tensor) -> torch.Tensor:
    """A loss that may not be there yet, or was read from a checkpoint, as a tensor like `loss`."""
    return torch.as_tensor(math.nan if value is None else value, dtype=loss.dtype, device=loss.device)
