"""A run that was stopped or killed computes bit for bit what it would have computed; its model has dropout."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tp2d_mesh import Mesh
from tp2d_train.report.metrics import read_lines
from tp2d_train.runs.folder import RunFolder

from apps.train.tests.small import Bench, SmallEngine, start

TIMES = ("time", "tokens_per_second", "label_tokens_per_second", "step_seconds", "memory_bytes")


def metrics(bench: Bench) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl` without those that time decides."""
    lines, _ = read_lines(bench.folder.metrics)
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def assert_same_end(bench: Bench, whole: Bench) -> None:
    assert metrics(bench) == metrics(whole)
    for ours, theirs in zip(bench.engine.model.parameters(), whole.engine.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert bench.reports[-1] == whole.reports[-1]


@pytest.mark.parametrize("stop_at", [1, 3, 4, 5, 8])
def test_stopped_and_resumed_is_bit_for_bit_the_same(tmp_path: Path, mesh: Mesh, stop_at: int) -> None:
    """Shows a lost random state, data position, moment, epoch sum, schedule step or best loss; 5 steps an epoch."""
    settings = {"rows": 11, "held_out": 3, "num_epochs": 2, "gradient_accumulation_steps": 2}
    settings |= {"eval_interval_steps": 2, "lr_scheduler": "cosine", "warmup_steps": 2}
    whole = start(tmp_path / "whole", mesh, **settings)
    first = start(tmp_path / "parts", mesh, stop_at=stop_at, **settings)
    assert not first.finished and len(first.engine.steps) == stop_at + 1  # the vote is read a step later
    second = start(tmp_path / "parts", mesh, **settings)
    assert second.finished
    assert first.engine.steps + second.engine.steps == whole.engine.steps
    assert first.engine.seen + second.engine.seen == whole.engine.seen
    assert_same_end(second, whole)
    assert second.run.as_dict() == whole.run.as_dict()


def test_killed_between_saves_resumes_at_the_last_one(tmp_path: Path, mesh: Mesh) -> None:
    """The lines after the last save are written again, not twice."""

    class Dying(SmallEngine):
        def train_step(self, micro_batches):  # type: ignore[no-untyped-def]
            if len(self.steps) == 7:
                raise KeyboardInterrupt
            return super().train_step(micro_batches)

    settings = {"rows": 10, "save_interval_steps": 5}
    whole = start(tmp_path / "whole", mesh, **settings)
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path / "parts", mesh, engine=Dying(), **settings)
    assert len(read_lines(RunFolder(tmp_path / "parts").metrics)[0]) == 7
    second = start(tmp_path / "parts", mesh, **settings)
    assert len(second.engine.steps) == 5
    assert_same_end(second, whole)


def test_killed_before_the_first_save_starts_anew(tmp_path: Path, mesh: Mesh) -> None:
    (tmp_path / "run").mkdir()
    RunFolder(tmp_path / "run").metrics.write_text('{"step": 1, "epoch": 0, "loss": 9.0}\n{"step": 2, "ep')
    bench = start(tmp_path / "run", mesh, rows=3)
    assert [line["step"] for line in bench.lines("loss")] == [1, 2, 3]
    assert bench.lines("loss")[0]["loss"] == bench.engine.steps[0]["loss"]


def test_one_epoch_more_prolongs_the_schedule(tmp_path: Path, mesh: Mesh) -> None:
    first = start(tmp_path / "run", mesh, rows=4, lr_scheduler="linear")
    assert first.finished and not first.events("prolonged")
    second = start(tmp_path / "run", mesh, rows=4, lr_scheduler="linear", num_epochs=2)
    (event,) = second.events("prolonged")
    assert (event["step"], event["before"], event["total_steps"]) == (4, 4, 8)
    assert [step["lr"] for step in second.engine.steps] == [1e-2 * (1 - step / 8) for step in range(4, 8)]
    assert second.reports[-1]["epoch"] == 1 and second.run.step == 8


def test_a_finished_run_has_nothing_to_do(tmp_path: Path, mesh: Mesh) -> None:
    start(tmp_path / "run", mesh, rows=3)
    again = start(tmp_path / "run", mesh, rows=3)
    assert again.finished and not again.engine.steps and again.run.step == 3
    assert len(again.lines("loss")) == 3 and again.steps_of("saved") == [3]


def test_the_total_steps_of_an_unchanged_run_are_the_same_wherever_it_resumes(tmp_path: Path, mesh: Mesh) -> None:
    start(tmp_path / "run", mesh, rows=9, num_epochs=2, debug_steps=4, stop_at=5)
    second = start(tmp_path / "run", mesh, rows=9, num_epochs=2, debug_steps=4)
    assert second.run.total_steps == 8 and not second.events("prolonged")


def test_times_carry_over(tmp_path: Path, mesh: Mesh) -> None:
    first = start(tmp_path / "run", mesh, rows=4, stop_at=1)
    second = start(tmp_path / "run", mesh, rows=4)
    assert second.clock.seconds["train"] > first.clock.seconds["train"] > 0


def test_a_request_to_stop_at_the_last_step_finds_a_finished_run(tmp_path: Path, mesh: Mesh) -> None:
    bench = start(tmp_path / "run", mesh, rows=4, held_out=2, stop_at=3)
    assert bench.finished and bench.steps_of("saved") == bench.steps_of("evaluated") == [4]
