"""What the loop does when, on a real single-process engine with real checkpoints."""

import dataclasses
from pathlib import Path

import pytest
import torch
from tp2d_mesh import Mesh, StepStats
from tp2d_train.outcome import Diverged
from tp2d_train.training import health
from tp2d_train.training.schedule import learning_rate

from apps.train.tests.small import Rows, SmallEngine, start


def test_logs_evaluates_and_saves_at_its_intervals(tmp_path: Path, mesh: Mesh) -> None:
    bench = start(
        tmp_path / "run",
        mesh,
        rows=12,
        held_out=4,
        log_interval=3,
        eval_interval_steps=4,
        save_interval_steps=5,
        keep_checkpoints=2,
    )
    assert bench.finished
    assert [line["step"] for line in bench.lines("loss")] == bench.steps_of("step") == [3, 6, 9, 12]
    assert [line["step"] for line in bench.lines("eval_loss")] == bench.steps_of("evaluated") == [4, 8, 12]
    assert bench.steps_of("saved") == [5, 10, 12]
    kept = sorted(path.name.split("-")[1] for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["00000010", "00000012"]


def test_a_line_holds_the_steps_metrics(tmp_path: Path, mesh: Mesh) -> None:
    bench = start(tmp_path / "run", mesh, rows=4)
    lines = bench.lines("loss")
    assert [line["loss"] for line in lines] == [step["loss"] for step in bench.engine.steps]
    assert lines[-1]["tokens"] == sum(step["tokens"] for step in bench.engine.steps)
    assert [line["lr"] for line in lines] == [step["lr"] for step in bench.engine.steps]
    for line in lines:
        assert {"grad_norm", "tokens_per_second", "step_seconds", "memory_bytes", "epoch"} <= line.keys()
        assert "mfu" not in line  # the peak of a CPU is not known
        assert line["tokens_per_second"] > 0 and line["memory_bytes"] > 1 << 20


@pytest.mark.parametrize("interval", [None, 0, -1])
def test_log_interval_can_be_off(tmp_path: Path, mesh: Mesh, interval: int | None) -> None:
    bench = start(tmp_path / "run", mesh, rows=3, log_interval=interval)
    assert not bench.lines("loss") and len(bench.engine.steps) == 3


def test_leftover_micro_batches_make_no_step(tmp_path: Path, mesh: Mesh) -> None:
    """7 micro-batches and accumulation 2: 3 steps an epoch, each of 2 micro-batches of that epoch."""
    bench = start(tmp_path / "run", mesh, rows=7, num_epochs=2, gradient_accumulation_steps=2)
    assert [len(step) for step in bench.engine.seen] == [2] * 6
    rows = [row for step in bench.engine.seen for batch in step for row in batch]
    assert len(set(rows[:6])) == len(set(rows[6:])) == 6 and rows[:6] != rows[6:]


def test_leftover_micro_batches_make_a_step_where_the_last_batch_is_padded(tmp_path: Path, mesh: Mesh) -> None:
    """7 micro-batches and accumulation 2: 4 steps an epoch, the last of one micro-batch; every row is seen."""
    bench = start(tmp_path / "run", mesh, rows=7, num_epochs=2, gradient_accumulation_steps=2, last_batch="pad")
    assert [len(step) for step in bench.engine.seen] == [2, 2, 2, 1] * 2
    assert sorted(row for step in bench.engine.seen[:4] for batch in step for row in batch) == list(range(7))
    assert bench.finished and bench.steps_of("saved") == [4, 8]


def test_an_epoch_of_a_stream_ends_when_the_stream_does(tmp_path: Path, mesh: Mesh) -> None:
    """5 rows: epochs of 5 steps that nobody knew of before, up to max_steps; each is evaluated and saved at its end."""
    bench = start(tmp_path / "run", mesh, rows=5, held_out=2, streaming=True, num_epochs=9, max_steps=12)
    assert bench.finished and len(bench.engine.steps) == 12
    assert bench.steps_of("epoch") == [5, 10]
    assert bench.steps_of("evaluated") == bench.steps_of("saved") == [5, 10, 12]
    assert bench.run.epoch == 2 and bench.run.epoch_step == 2


@pytest.mark.parametrize("stop_at", [2, 5, 7])
def test_a_stream_resumes_where_it_was(tmp_path: Path, mesh: Mesh, stop_at: int) -> None:
    """Stopped in an epoch, at its last step (whose being the last nobody knows), and in the next one."""
    settings = {"rows": 5, "streaming": True, "num_epochs": 9, "max_steps": 12}
    whole = start(tmp_path / "whole", mesh, **settings)
    first = start(tmp_path / "run", mesh, stop_at=stop_at, **settings)
    assert not first.finished
    second = start(tmp_path / "run", mesh, **settings)
    assert second.finished and first.engine.steps + second.engine.steps == whole.engine.steps


def test_a_stream_ends_with_its_last_epoch(tmp_path: Path, mesh: Mesh) -> None:
    bench = start(tmp_path / "run", mesh, rows=5, streaming=True, num_epochs=2, max_steps=100)
    assert bench.finished and len(bench.engine.steps) == 10 and bench.run.epoch == 2


def test_a_stream_that_gives_nothing_warns(tmp_path: Path, mesh: Mesh) -> None:
    with pytest.warns(UserWarning, match="epoch 0 has no step to do: none micro-batches"):
        bench = start(tmp_path / "run", mesh, rows=3, batch_size_per_gpu=4, streaming=True, max_steps=5)
    assert bench.finished and not bench.engine.steps


def test_debug_steps_end_every_epoch(tmp_path: Path, mesh: Mesh) -> None:
    bench = start(tmp_path / "run", mesh, rows=10, num_epochs=3, debug_steps=2)
    assert len(bench.engine.steps) == 6 and bench.steps_of("saved") == [2, 4, 6]
    assert [event["epoch"] for event in bench.events("epoch")] == [0, 1, 2]
    off = start(tmp_path / "off", mesh, rows=10, debug_steps=0)
    assert len(off.engine.steps) == 10


def test_max_steps_end_the_run_in_the_middle_of_an_epoch(tmp_path: Path, mesh: Mesh) -> None:
    bench = start(tmp_path / "run", mesh, rows=5, held_out=2, num_epochs=3, max_steps=7)
    assert bench.finished and len(bench.engine.steps) == 7
    assert bench.steps_of("saved") == bench.steps_of("evaluated") == [5, 7]
    assert bench.run.epoch == 1 and bench.run.epoch_step == 2


def test_max_steps_at_an_epochs_end_saves_once(tmp_path: Path, mesh: Mesh) -> None:
    bench = start(tmp_path / "run", mesh, rows=4, num_epochs=3, max_steps=4, save_interval_steps=4)
    assert bench.finished and bench.steps_of("saved") == [4] and bench.run.epoch == 1


def test_an_epochs_loss_is_the_mean_over_its_tokens(tmp_path: Path, mesh: Mesh) -> None:
    """Shows a mean of the steps' means: the rows are ragged, so steps have different token counts."""
    bench = start(tmp_path / "run", mesh, rows=6, num_epochs=2)
    for epoch in (0, 1):
        steps = bench.engine.steps[epoch * 6 : epoch * 6 + 6]
        mean = sum(step["loss"] * step["tokens"] for step in steps) / sum(step["tokens"] for step in steps)
        assert bench.reports[epoch]["loss"] == pytest.approx(mean, rel=1e-12)
        assert bench.reports[epoch]["epoch"] == epoch and bench.reports[epoch]["step"] == 6 * (epoch + 1)
    assert len({step["tokens"] for step in bench.engine.steps}) > 1


def test_the_evaluation_is_the_mean_over_the_held_out_tokens(tmp_path: Path, mesh: Mesh) -> None:
    bench = start(tmp_path / "run", mesh, rows=3, held_out=6, eval_batches=4)
    batches = [batch for batch, _ in zip(Rows(6), range(4), strict=False)]
    sums = [bench.engine.evaluate(batch) for batch in batches]
    tokens = sum(int(count) for _, count in sums)
    (line,) = bench.lines("eval_loss")
    assert line["eval_tokens"] == tokens
    assert line["eval_loss"] == pytest.approx(sum(float(loss) for loss, _ in sums) / tokens, rel=1e-6)
    assert bench.reports[-1]["eval_loss"] == line["eval_loss"]


def test_evaluating_does_not_change_the_training(tmp_path: Path, mesh: Mesh) -> None:
    with_it = start(tmp_path / "with", mesh, rows=6, held_out=3, eval_interval_steps=1)
    without = start(tmp_path / "without", mesh, rows=6)
    assert with_it.engine.steps == without.engine.steps


def test_the_learning_rate_follows_the_schedule(tmp_path: Path, mesh: Mesh) -> None:
    bench = start(tmp_path / "run", mesh, rows=5, num_epochs=2, lr_scheduler="cosine", warmup_steps=3)
    expected = [learning_rate(step, base=1e-2, kind="cosine", warmup_steps=3, total_steps=10) for step in range(10)]
    assert [step["lr"] for step in bench.engine.steps] == expected


def test_an_epoch_without_a_step_warns_and_saves_nothing(tmp_path: Path, mesh: Mesh) -> None:
    with pytest.warns(UserWarning, match=r"epoch 0 has no step to do: 3 micro-batches for gradient_acc.* 4"):
        bench = start(tmp_path / "run", mesh, rows=3, gradient_accumulation_steps=4)
    assert bench.finished and not bench.engine.steps and not bench.reports
    assert len(bench.events("warning")) == 1 and not bench.events("saved")
    assert not (tmp_path / "run" / "checkpoints").exists()


class OnNoDevice(SmallEngine):
    """Gives back numbers that nobody can read."""

    def train_step(self, micro_batches):  # type: ignore[no-untyped-def]
        stats = super().train_step(micro_batches)
        return StepStats(**{field.name: getattr(stats, field.name).to("meta") for field in dataclasses.fields(stats)})


class UnderWay:
    """The copy of a meta tensor to the host: it is under way, and never arrives."""

    def __init__(self, tensor: torch.Tensor) -> None:
        assert tensor.device.type == "meta"

    def has_arrived(self) -> bool:
        return False

    def numbers(self) -> list[float]:
        return [2.0, 0.0]


def test_a_step_that_is_not_logged_reads_nothing_from_the_device(
    tmp_path: Path, mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a GPU a read in every step would make the host wait. A meta tensor raises when it is read."""
    monkeypatch.setattr(health, "HostCopy", UnderWay)
    engine = OnNoDevice()
    with pytest.raises(RuntimeError, match="meta"):
        start(tmp_path / "run", mesh, engine=engine, rows=8, log_interval=0)
    assert len(engine.steps) == 8, "something was read before the epoch's end, where the mean loss needs it"


class Poisoned(SmallEngine):
    """Skips steps as the real engines do: nothing but the batch is used up.

    Args:
        steps: the calls of `train_step`, from 1, whose gradient is not finite.
    """

    def __init__(self, *steps: int) -> None:
        super().__init__()
        self.poisoned, self.calls = steps, 0

    def train_step(self, micro_batches):  # type: ignore[no-untyped-def]
        self.calls += 1
        if self.calls not in self.poisoned:
            return super().train_step(micro_batches)
        self.after_step(self.calls)
        tokens = torch.stack([self._sums(batch)[1] for batch in micro_batches]).sum()
        nan = torch.tensor(float("nan"))
        return StepStats(loss=nan, grad_norm=nan, tokens=tokens, positions=tokens, skipped=torch.tensor(True))


def test_a_skipped_step_is_said_and_the_run_goes_on(tmp_path: Path, mesh: Mesh) -> None:
    bench = start(tmp_path / "run", mesh, engine=Poisoned(4), rows=8)
    assert bench.finished and bench.run.step == 8 and len(bench.engine.steps) == 7
    (event,) = bench.events("skipped")
    assert (event["step"], event["message"]) == (4, "step 4 was skipped: its gradient is not finite")
    assert [line["loss"] for line in bench.lines("loss")][3] is None
    sums = [(step["loss"] * step["tokens"], step["tokens"]) for step in bench.engine.steps]
    assert bench.reports[-1]["loss"] == pytest.approx(sum(s for s, _ in sums) / sum(t for _, t in sums), rel=1e-9)


def test_nothing_is_saved_between_a_skipped_step_and_the_next_applied_one(tmp_path: Path, mesh: Mesh) -> None:
    """The loss and the weights may look sound while the model is ruined. Step 6's save comes after step 8."""
    bench = start(tmp_path / "run", mesh, engine=Poisoned(6, 7), rows=12, save_interval_steps=3, keep_checkpoints=None)
    assert bench.finished and bench.steps_of("saved") == [3, 8, 9, 12]


def test_a_save_at_an_epochs_end_waits_too_and_the_last_step_may_not_be_skipped(tmp_path: Path, mesh: Mesh) -> None:
    bench = start(tmp_path / "run", mesh, engine=Poisoned(4), rows=4, num_epochs=2)
    assert bench.finished and bench.steps_of("saved") == [5, 8]
    with pytest.raises(Diverged, match="1 step was skipped, from step 4 on, because the gradient is not finite"):
        start(tmp_path / "other", mesh, engine=Poisoned(4), rows=4)
    assert not (tmp_path / "other" / "checkpoints").exists()


def test_a_stop_after_a_skipped_step_saves_nothing_and_says_so(tmp_path: Path, mesh: Mesh) -> None:
    bench = start(tmp_path / "run", mesh, engine=Poisoned(3, 4, 5), rows=12, stop_at=3, max_skipped_steps=9)
    assert not bench.finished and not bench.steps_of("saved")
    (warning,) = bench.events("warning")
    assert "was skipped, so nothing was saved for it" in warning["message"]


def test_skipped_steps_in_a_row_end_the_run_and_name_the_way_back(tmp_path: Path, mesh: Mesh) -> None:
    """Checkpoint 6 was taken right before step 7 was skipped: the update of step 6 may be what ruined the model."""
    engine = Poisoned(7, 9, 10, 11, 12, 13)
    with pytest.raises(Diverged) as raised:
        start(tmp_path / "run", mesh, engine=engine, rows=20, save_interval_steps=2, keep_checkpoints=2)
    message, left = str(raised.value), sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert [name.split("-")[1] + name[22:] for name in left] == ["00000004-kept", "00000006", "00000008"]
    assert message.startswith("4 steps in a row were skipped, from step 9 on, because the gradient is not finite; ")
    assert f"the last loss was {engine.steps[-1]['loss']:.4g}. " in message
    assert f"The newest checkpoint from before is {tmp_path / 'run' / 'checkpoints' / left[0]}, of step 4: " in message
    assert f"delete {left[1]}, {left[2]}, which may hold a ruined model, and resume with other settings" in message


def test_without_a_checkpoint_from_before_the_message_says_so(tmp_path: Path, mesh: Mesh) -> None:
    with pytest.raises(Diverged, match="There is no checkpoint from before: start anew under another name"):
        start(tmp_path / "run", mesh, engine=Poisoned(1, 2, 3, 4), rows=12)


class Spiking(SmallEngine):
    """Says that the loss of step 20 is ten times what it is."""

    def train_step(self, micro_batches):  # type: ignore[no-untyped-def]
        stats = super().train_step(micro_batches)
        return dataclasses.replace(stats, loss=stats.loss * 10) if len(self.steps) == 20 else stats


def test_a_spike_warns_and_keeps_the_checkpoint_before_it(tmp_path: Path, mesh: Mesh) -> None:
    bench = start(tmp_path / "run", mesh, engine=Spiking(), rows=40, save_interval_steps=6)
    assert bench.finished and bench.steps_of("spike") == [20]
    left = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert [name.split("-")[1] + name[22:] for name in left] == ["00000018-kept", "00000036", "00000040"]


def test_a_spike_stops_the_run_where_that_is_asked_for(tmp_path: Path, mesh: Mesh) -> None:
    with pytest.raises(Diverged, match=r"the loss \S+ of step 20 is a spike, .* \(on_spike=stop\)\. .*00018"):
        start(tmp_path / "run", mesh, engine=Spiking(), rows=40, save_interval_steps=6, on_spike="stop")


def test_the_ends_of_epochs_are_saved_or_not(tmp_path: Path, mesh: Mesh) -> None:
    """Without them: what the interval asks for, and the very last."""
    settings = {"rows": 4, "num_epochs": 4, "keep_checkpoints": None}
    assert start(tmp_path / "each", mesh, **settings).steps_of("saved") == [4, 8, 12, 16]
    bench = start(tmp_path / "run", mesh, save_each_epoch=False, save_interval_steps=6, **settings)
    assert bench.steps_of("saved") == [6, 12, 16]
    stopped = start(tmp_path / "stopped", mesh, save_each_epoch=False, stop_at=4, **settings)
    assert not stopped.finished and stopped.steps_of("saved") == [5]
