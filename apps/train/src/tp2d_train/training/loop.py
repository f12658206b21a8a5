"""The training loop. It does not know which engine computes, what started it, or where its checkpoints lie.

All its decisions depend on numbers that are equal on all ranks; `length` has those about the epochs.
"""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NoReturn

from tp2d_mesh import StepStats

from tp2d_train.config import TrainConfig
from tp2d_train.contracts import Batch, Engine, Loader
from tp2d_train.outcome import Diverged
from tp2d_train.report.meter import Clock, Meter
from tp2d_train.report.metrics import evaluation_metrics
from tp2d_train.report.record import Record
from tp2d_train.training.checkpoints import Checkpoints
from tp2d_train.training.health import Alarm
from tp2d_train.training.length import Length
from tp2d_train.training.schedule import learning_rate
from tp2d_train.training.state import RunState
from tp2d_train.training.stop import StopVote

if TYPE_CHECKING:
    from tp2d_train.training.profiling import Profiling


class Loop:
    """Trains a run from where it is to its end.

    Args:
        config: the settings.
        engine: computes the steps.
        loader: the training data.
        held_out: the batches to evaluate on, iterated anew each time, or None: no evaluation.
        checkpoints: where the run is saved.
        record: what is written down.
        vote: on requests to stop early, and on alarms.
        run: where the run is; advanced in place.
        clock, meter: its times and speeds.
        profiling: records some of the steps; None: no step is recorded.
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
        profiling: "Profiling | None" = None,
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
        self._profiling = profiling
        self._micro_batches = None if config.streaming else len(loader)
        self._length = Length.of(config, micro_batches=self._micro_batches)
        self._first_step = run.step + 1
        self._save_is_owed = False
        self._earlier_total = run.total_steps
        run.total_steps = self._length.total_steps(run)

    def run(self) -> bool:
        """Trains; returns whether the run is complete, False where somebody asked to stop. Either way it is saved.

        Raises:
            Diverged: too many steps in a row were skipped, the last one was, or the loss had a spike that is to stop
                the run. Nothing was saved since.
        """
        self._resume()
        while not self._length.is_complete(self._run):
            left, stopped = self._length.steps_left(self._run), False
            for micro_batches in self._recorded(self._epoch(left)):
                self._step(micro_batches)
                left, stopped = left - 1, self._is_stopped()
                self._end_recorded()
                if stopped or not left:
                    break
                if self._due(self._config.eval_interval_steps):
                    self._evaluate()
                if self._save_is_owed or self._due(self._config.save_interval_steps):
                    self._save(self._metrics())
            self._leave_epoch(ended=not (stopped and left), stopped=stopped)
            if stopped and not self._length.is_complete(self._run):
                self._say_what_is_lost()
                return False
        if self._save_is_owed:
            self._give_up(Alarm.SKIPPED)
        return True

    def _say_what_is_lost(self) -> None:
        if self._save_is_owed:
            message = f"step {self._run.step} was skipped, so nothing was saved for it: the last checkpoint stays"
            self._event("warning", message=message)

    def _is_stopped(self) -> bool:
        """Whether any rank was asked to stop; says what is known of the last steps, and ends a run that diverged."""
        verdict = self._vote.take(self._run.health.alarm(self._config))
        if verdict.alarm:
            self._give_up(verdict.alarm)
        self._tell()
        return verdict.stop

    def _tell(self) -> None:
        """Writes down skipped steps and spikes, and keeps the newest checkpoint from before the first of them."""
        for kind, step, message in self._run.health.notices():
            self._event(kind, message=message, step=step)
            if step == self._run.health.trouble_at:
                self._checkpoints.keep_sound(before=step)

    def _give_up(self, alarm: Alarm) -> NoReturn:
        """Ends a run that diverged; a collective."""
        self._run.health.settle()
        self._tell()
        way_back = self._checkpoints.way_back(before=self._run.health.trouble_at)
        raise Diverged(f"{self._run.health.describe(alarm)} {way_back}")

    def _resume(self) -> None:
        """Says where another length was asked for than before, and makes up for an evaluation that was due."""
        if self._earlier_total not in (0, self._run.total_steps):
            self._event("prolonged", before=self._earlier_total)
        if self._due(self._config.eval_interval_steps) and self._run.evaluated_at != self._run.step:
            self._evaluate()

    def _epoch(self, steps: int) -> Iterator[list[Batch]]:
        """The micro-batches of each step that is left of the epoch, at most `steps`; read when they are asked for."""
        self._loader.sampler.set_epoch(self._run.epoch)
        batches = iter(self._loader)
        wanted = self._config.gradient_accumulation_steps
        for _ in range(steps):
            micro_batches = list(islice(batches, wanted))
            if not micro_batches or (len(micro_batches) < wanted and self._config.last_batch == "drop"):
                return
            yield micro_batches

    def _recorded(self, steps: Iterator[list[Batch]]) -> Iterator[list[Batch]]:
        return steps if self._profiling is None else self._profiling.over(steps)

    def _end_recorded(self) -> None:
        """Ends the recording of a step. After the last one speeds are measured anew: those steps were slower."""
        if self._profiling is None or not self._profiling.end_step():
            return
        self._clock.lap("train")
        self._profiling.write()
        self._clock.lap("save")
        run = self._run
        self._meter.read(step=run.step, tokens=int(run.tokens), positions=int(run.positions))
        self._meter.warmed_up(step=run.step, tokens=run.tokens, positions=run.positions)

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
        if run.step == self._first_step:
            self._meter.warmed_up(step=run.step, tokens=run.tokens, positions=run.positions)
            self._event("phase", message="the first step is done")
        if self._due(config.log_interval):
            self._log(stats, rate)

    def _due(self, interval: int | None) -> bool:
        return interval is not None and interval > 0 and self._run.step > 0 and self._run.step % interval == 0

    def _leave_epoch(self, *, ended: bool, stopped: bool) -> None:
        """Evaluates and saves. Where the epoch has no more steps, what is saved is the beginning of the next one."""
        if not self._run.epoch_step:
            self._skip_epoch()
            return
        if ended and self._run.evaluated_at != self._run.step:
            self._evaluate()
        metrics = self._metrics()
        if ended and self._length.epoch_is_whole(self._run):
            self._event("epoch", num_epochs=self._config.num_epochs, loss=metrics["loss"])
            self._run.end_epoch()
        last = stopped or self._length.is_complete(self._run)
        if last or self._config.save_each_epoch or self._due(self._config.save_interval_steps) or self._save_is_owed:
            self._save(metrics)

    def _skip_epoch(self) -> None:
        found = "none" if self._micro_batches is None else self._micro_batches
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
        metrics = evaluation_metrics(loss=loss, tokens=tokens)
        self._record.metrics({"step": self._run.step, "epoch": self._run.epoch, **metrics})
        self._event("evaluated", **metrics)

    def _metrics(self) -> dict[str, Any]:
        """What is reported with a checkpoint: the epoch's mean loss so far, and where that is."""
        run = self._run
        metrics = {"loss": run.epoch_loss(), "epoch": run.epoch, "step": run.step, "tokens": int(run.tokens)}
        return metrics if run.eval_loss is None else {**metrics, "eval_loss": run.eval_loss}

    def _save(self, metrics: dict[str, Any]) -> None:
        """Commits the run as it is; after a skipped step this is put off until a step was applied.

        Where gradients are not finite, loss and weights may look sound while the model is ruined.
        """
        self._clock.lap("train")
        self._run.health.settle()
        self._tell()
        self._save_is_owed = self._run.health.in_a_row > 0
        if self._save_is_owed:
            return
        before = self._clock.seconds["save"]
        info = self._checkpoints.save(self._run, seconds=self._clock.seconds, metrics=metrics)
        self._clock.lap("save")
        self._event("saved", checkpoint=info.path.name, seconds=self._clock.seconds["save"] - before)

    def _log(self, stats: StepStats, rate: float) -> None:
        run = self._run
        tokens, positions = int(run.tokens), int(run.positions)
        line = {
            "step": run.step,
            "epoch": run.epoch,
            "loss": float(stats.loss),
            "grad_norm": float(stats.grad_norm),
            "lr": rate,
            "tokens": tokens,
            "positions": positions,
            **self._meter.read(step=run.step, tokens=tokens, positions=positions),
        }
        self._record.metrics(line)
        self._event("step", **line, eta_seconds=(run.total_steps - run.step) * line["step_seconds"])

    def _event(self, event: str, **values: Any) -> None:
        place = {"step": self._run.step, "epoch": self._run.epoch, "total_steps": self._run.total_steps}
        self._record.event(event, **place | values)
