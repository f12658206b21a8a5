"""Where a run is: what has to be saved so that it goes on as if it had never stopped."""

import dataclasses
from typing import Any, Self

import torch
from tp2d_mesh import StepStats

from tp2d_train.report.meter import Number


@dataclasses.dataclass(kw_only=True)
class RunState:
    """The counters and sums of a run; those that a step adds to stay on the device until somebody reads them.

    Args:
        step: completed optimizer steps of the run.
        epoch: the epoch under way, from 0; equal to the number of epochs when all are done.
        epoch_step: completed optimizer steps of that epoch.
        tokens: predicted tokens so far.
        epoch_tokens: those of this epoch.
        epoch_loss_sum: the loss of this epoch, summed over its tokens in float64.
        mean_loss: of the last whole epoch, None before its end.
        last_loss: of the last step, None before the first.
        best_loss: the lowest of a step.
        evaluated_at: the step of the last evaluation.
        eval_loss: of the last evaluation.
        best_eval_loss: the lowest of an evaluation.
        total_steps: the step at which the run and its schedule end, 0 before the loop has set it.
    """

    step: int = 0
    epoch: int = 0
    epoch_step: int = 0
    tokens: Number = 0
    epoch_tokens: Number = 0
    epoch_loss_sum: Number = 0.0
    mean_loss: float | None = None
    last_loss: Number | None = None
    best_loss: Number | None = None
    evaluated_at: int | None = None
    eval_loss: float | None = None
    best_eval_loss: float | None = None
    total_steps: int = 0

    def add(self, stats: StepStats) -> None:
        """Counts a completed step, without waiting for the device."""
        loss = stats.loss.double()
        self.step += 1
        self.epoch_step += 1
        self.tokens = self.tokens + stats.tokens
        self.epoch_tokens = self.epoch_tokens + stats.tokens
        # A step without a label has no mean loss, and adds nothing.
        self.epoch_loss_sum = self.epoch_loss_sum + torch.where(stats.tokens > 0, loss * stats.tokens, 0.0)
        self.last_loss = loss
        best = loss if self.best_loss is None else torch.as_tensor(self.best_loss, dtype=loss.dtype, device=loss.device)
        self.best_loss = torch.fmin(loss, best)

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
        return {name: value.item() if isinstance(value, torch.Tensor) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The counterpart of `as_dict`."""
        return cls(**values)
