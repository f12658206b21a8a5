"""What a run left becomes the numbers of a row."""

import json
from pathlib import Path
from typing import Any

import pytest
from tp2d_mesh.cost import Estimate, Memory, Traffic
from tp2d_train.comparison.rows import empty_row, largest_difference, measured_row, with_plan
from tp2d_train.comparison.settings import Cell, Settings
from tp2d_train.runs.folder import RunFolder

LOSSES = {1: 9.0, 2: 8.0, 3: 7.0, 4: 6.0, 5: 5.0, 6: 4.0}


@pytest.fixture
def cell() -> Cell:
    (cell,) = Settings.of({"meshes": ("2x1",), "engines": ("fsdp2",), "global_batch_size": 8}).cells()
    return cell


def left(path: Path, *, steps: int) -> RunFolder:
    """A folder as a run of so many steps leaves it; the first steps are slow."""
    seconds = {1: 9.0, 2: 5.0, 3: 4.0, 4: 0.1, 5: 0.3, 6: 0.2}
    lines: list[dict[str, Any]] = [
        {"step": step, "loss": LOSSES[step], "step_seconds": seconds[step], "tokens_per_second": 64 / seconds[step]}
        for step in range(1, steps + 1)
    ]
    path.mkdir()
    folder = RunFolder(path)
    folder.metrics.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"step": steps, "eval_loss": 3.0}]))
    folder.summary.write_text(json.dumps({"step": steps, "final_loss": LOSSES[steps], "memory_bytes": 1 << 20}))
    return folder


def test_times_are_medians_without_the_first_steps(cell: Cell, tmp_path: Path) -> None:
    row = measured_row(cell, left(tmp_path / "run", steps=6), reference=None)
    assert (row.timed_steps, row.step_seconds, row.tokens_per_second) == (3, 0.2, pytest.approx(320))
    assert (row.micro_batches, row.steps, row.final_loss, row.memory_bytes) == (1, 6, 4.0, 1 << 20)
    assert row.loss_difference == 0.0, "the first run is compared to itself"


def test_a_run_too_short_to_time_has_no_time(cell: Cell, tmp_path: Path) -> None:
    row = measured_row(cell, left(tmp_path / "run", steps=3), reference=None)
    assert (row.timed_steps, row.step_seconds, row.tokens_per_second) == (0, None, None)


def test_losses_are_compared_at_every_step(cell: Cell, tmp_path: Path) -> None:
    """The last one alone would not show a difference in the middle."""
    reference = {**LOSSES, 2: 8.25, 7: 100.0}
    row = measured_row(cell, left(tmp_path / "run", steps=6), reference=reference)
    assert row.loss_difference == 0.25
    assert largest_difference(LOSSES, reference, steps=1) == 0.0
    assert largest_difference(LOSSES, {}) is None


def test_a_plan_is_memory_and_bytes_by_axis(cell: Cell) -> None:
    memory = Memory(weights=1, gradients=2, optimizer=4, gathered=8, activations=16, logits=32, buffers=64)
    one = {"purpose": "x", "kind": "all_gather", "ranks": 2, "calls": 1}
    traffic = tuple(Traffic(axis=axis, size=size, **one) for axis, size in (("dp", 100), ("world", 10), ("tp", 4)))
    row = empty_row(cell, state="waiting")
    planned = with_plan(row, Estimate(memory=memory, traffic=traffic, gather_once=False))
    assert planned.planned_memory_bytes == 127
    assert planned.sent_bytes == {"dp": 55.0, "tp": 2.0}, "a ring of two sends half of what it gathers"
    assert with_plan(row, "the engine has none").reason == "no plan: the engine has none"
