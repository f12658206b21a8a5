"""The training loop. It does not know which engine computes, what started it, or where its checkpoints lie.

An optimizer step takes `gradient_accumulation_steps` micro-batches. An epoch is `len(loader) // accumulation` steps:
its last micro-batches that do not fill a step are left out, so that every step has the same global batch (the order is
another one every epoch, and so are the rows left out); with `last_batch` pad they make one more step. An epoch of a
stream ends when the stream does. All decisions depend on numbers that are equal on all ranks.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence, Sized
from itertools import islice
from typing import Any, Protocol

from tp2d_train.checkpoints import Checkpoints
from tp2d_train.config import TrainConfig
from tp2d_train.engines import Batch, Engine, StepStats
from tp2d_train.meter import Clock, Meter
from tp2d_train.record import Record
from tp2d_train.schedule import learning_rate
from tp2d_train.state import RunState
from tp2d_train.stop import StopVote


class Epochs(Protocol):
    """What chooses the order of an epoch."""

    def set_epoch(self, epoch: int) -> None: ...


class Loader(Sized, Protocol):
    """One dp rank's micro-batches of an epoch; iterating goes on at a loaded position."""

    @property
    def sampler(self) -> Epochs: ...
    def __iter__(self) -> Iterator[Batch]: ...


class Loop:
    """Trains a run from where it is to its end.

    Args:
        config: the settings.
        engine: computes the steps.
        loader: the training data.
        held_out: the batches to evaluate on, iterated anew each time, or None: no evaluation.
        checkpoints: where the run is saved.
        record: what is written down.
        vote: on the wish to leave early.
        run: where the run is; advanced in place.
        clock, meter: its times and speeds.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        engine: Engine,
        loader: Loader,
        held_out: Iterable[Batch] | None,
        checkpoints: Checkpoints,
        record: Record,
        vote: StopVote,
        run: RunState,
        clock: Clock,
        meter: Meter,
    ) -> None:
        self._config = config
        self._engine = engine
        self._loader = loader
        self._held_out = held_out
        self._checkpoints = checkpoints
        self._record = record
        self._vote = vote
        self._run = run
        self._clock = clock
        self._meter = meter
        self._first_step = run.step + 1
        self._earlier_horizon = run.total_steps
        run.total_steps = self._last_step()

    def run(self) -> bool:
        """Trains; returns whether the run is complete, False where somebody wished to stop. Either way it is saved."""
        if self._earlier_horizon not in (0, self._run.total_steps):
            self._event("horizon", before=self._earlier_horizon)
        if self._due(self._config.eval_interval_steps) and self._run.evaluated_at != self._run.step:
            self._evaluate()  # it was due when the run was stopped
        while not self._complete:
            stopped = self._epoch()
            if stopped and not self._complete:
                return False
        return True

    @property
    def _complete(self) -> bool:
        limit = self._config.max_steps
        return self._run.epoch >= self._config.num_epochs or (limit is not None and self._run.step >= limit)

    def _last_step(self) -> int:
        """The step at which the run will end: the horizon of the schedule, later where a run is prolonged."""
        epochs, limit, steps = self._config.num_epochs - self._run.epoch, self._config.max_steps, self._epoch_steps
        if steps is None:
            assert limit is not None  # the configuration asks for it
            return max(limit, self._run.step)
        total = self._run.step + max(0, epochs * steps - self._run.epoch_step)
        return total if limit is None else min(total, limit)

    @property
    def _epoch_steps(self) -> int | None:
        """Steps of a whole epoch; None for a stream, which ends when it ends."""
        config = self._config
        if config.streaming:
            return config.debug_steps or None
        fill = config.gradient_accumulation_steps - 1 if config.last_batch == "pad" else 0
        steps = (len(self._loader) + fill) // config.gradient_accumulation_steps
        return min(steps, config.debug_steps or steps)

    def _steps_left(self) -> int:
        """Steps to do in this epoch, as far as that is known."""
        left, steps = self._run.total_steps - self._run.step, self._epoch_steps
        return left if steps is None else min(left, steps - self._run.epoch_step)

    def _epoch(self) -> bool:
        """Trains what is left of an epoch; returns whether somebody wished to stop."""
        self._loader.sampler.set_epoch(self._run.epoch)
        left, batches = self._steps_left(), iter(self._loader)
        stopped = False
        while left > 0 and not stopped:
            if not self._try_step(batches):
                break
            left, stopped = left - 1, self._vote.requested()
            if left and not stopped:
                self._between_steps()
        if not self._run.epoch_step:
            self._skip_epoch()
        else:
            self._leave_epoch(ended=not stopped or left <= 0)
        return stopped

    def _try_step(self, batches: Iterator[Batch]) -> bool:
        """Makes the next step; returns False where the epoch has no more micro-batches for one."""
        wanted = self._config.gradient_accumulation_steps
        micro_batches = list(islice(batches, wanted))
        if not micro_batches or (len(micro_batches) < wanted and self._config.last_batch == "drop"):
            return False
        self._step(micro_batches)
        return True

    def _step(self, micro_batches: Sequence[Batch]) -> None:
        config, run = self._config, self._run
        rate = learning_rate(
            run.step,
            base=config.learning_rate,
            kind=config.lr_scheduler,
            warmup_steps=config.warmup_steps,
            total_steps=run.total_steps,
        )
        self._engine.set_learning_rate(rate)
        stats = self._engine.train_step(micro_batches)
        run.add(stats)
        if self._due(config.log_interval):
            self._log(stats, rate)
        if run.step == self._first_step:
            self._meter.warmed_up(step=run.step, tokens=run.tokens)

    def _due(self, interval: int | None) -> bool:
        return interval is not None and interval > 0 and self._run.step > 0 and self._run.step % interval == 0

    def _between_steps(self) -> None:
        if self._due(self._config.eval_interval_steps):
            self._evaluate()
        if self._due(self._config.save_interval_steps):
            self._save(self._figures())

    def _leave_epoch(self, *, ended: bool) -> None:
        """Evaluates and saves; if all steps of the epoch are done, what is saved is the beginning of the next."""
        if ended and self._run.evaluated_at != self._run.step:
            self._evaluate()
        figures = self._figures()
        if ended and self._is_whole:
            self._event("epoch", num_epochs=self._config.num_epochs, loss=figures["loss"])
            self._run.end_epoch()
        self._save(figures)

    @property
    def _is_whole(self) -> bool:
        """Whether an epoch in which no more steps can be done is done; else the run's last step came first."""
        steps = self._epoch_steps
        return self._run.step < self._run.total_steps if steps is None else self._run.epoch_step >= steps

    def _skip_epoch(self) -> None:
        found = "none" if self._config.streaming else len(self._loader)
        message = (
            f"epoch {self._run.epoch} has no step to do: {found} micro-batches for "
            f"gradient_accumulation_steps {self._config.gradient_accumulation_steps}; nothing is saved for it"
        )
        warnings.warn(message, stacklevel=2)
        self._event("warning", message=message)
        self._run.end_epoch()

    def _evaluate(self) -> None:
        if self._held_out is None:
            return
        self._clock.lap("train")
        sums = [self._engine.evaluate(batch) for batch in islice(self._held_out, self._config.eval_batches)]
        tokens = sum(int(count) for _, count in sums)
        loss = sum(float(total) for total, _ in sums) / tokens
        self._clock.lap("eval")
        self._run.add_evaluation(loss)
        self._record.figures(
            {"step": self._run.step, "epoch": self._run.epoch, "eval_loss": loss, "eval_tokens": tokens}
        )
        self._event("evaluated", eval_loss=loss, eval_tokens=tokens)

    def _figures(self) -> dict[str, Any]:
        """What is reported with a checkpoint: the epoch's mean loss so far, and where that is."""
        run = self._run
        figures = {"loss": run.epoch_loss(), "epoch": run.epoch, "step": run.step, "tokens": int(run.tokens)}
        return figures if run.eval_loss is None else {**figures, "eval_loss": run.eval_loss}

    def _save(self, figures: dict[str, Any]) -> None:
        self._clock.lap("train")
        before = self._clock.seconds["save"]
        info = self._checkpoints.save(self._run, seconds=self._clock.seconds, figures=figures)
        self._clock.lap("save")
        self._event("saved", checkpoint=info.path.name, seconds=self._clock.seconds["save"] - before)

    def _log(self, stats: StepStats, rate: float) -> None:
        run = self._run
        tokens = int(run.tokens)
        line = {
            "step": run.step,
            "epoch": run.epoch,
            "loss": float(stats.loss),
            "grad_norm": float(stats.grad_norm),
            "lr": rate,
            "tokens": tokens,
            **self._meter.read(step=run.step, tokens=tokens),
        }
        self._record.figures(line)
        self._event("step", **line, eta_seconds=(run.total_steps - run.step) * line["step_seconds"])

    def _event(self, event: str, **figures: Any) -> None:
        place = {"step": self._run.step, "epoch": self._run.epoch, "total_steps": self._run.total_steps}
        self._record.event(event, **place | figures)
