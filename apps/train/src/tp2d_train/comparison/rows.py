"""What a run of a comparison gave, read from its folder, beside what was planned for it."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from tp2d_mesh.cost import Estimate

from tp2d_train.comparison.settings import Cell
from tp2d_train.report.metrics import column, read_lines
from tp2d_train.runs.folder import RunFolder
from tp2d_train.runs.run import read_summary

FIRST_STEPS = 3
"""Steps whose times are left out: they compile, allocate and fill caches."""

Losses = Mapping[int, float]
"""The loss of every step."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table; what is not known is None.

    Args:
        name: of the run.
        engine: what ran the parallelism.
        mesh: dp x tp.
        activation_checkpointing: what backward computed again.
        state: `finished`, `refused` (before it was started), `failed`, or `waiting`.
        reason: of a refusal or a failure; or why there is no plan.
        micro_batches: of a step.
        steps: how many it made.
        timed_steps: of how many the times are the median: all after the first `FIRST_STEPS`.
        step_seconds: of a step.
        tokens_per_second: of all ranks together, positions without a label too.
        memory_bytes: the most that rank 0 had in use: tensors on a GPU, the whole process on a CPU.
        planned_memory_bytes: of the tensors of rank 0.
        sent_bytes: what a rank is planned to send in a step, by axis; over all ranks counts for dp.
        final_loss: of the last step.
        loss_difference: the largest of all steps, to the first run that finished.
    """

    name: str
    engine: str
    mesh: str
    activation_checkpointing: str
    state: str
    reason: str | None = None
    micro_batches: int | None = None
    steps: int | None = None
    timed_steps: int | None = None
    step_seconds: float | None = None
    tokens_per_second: float | None = None
    memory_bytes: int | None = None
    planned_memory_bytes: int | None = None
    sent_bytes: Mapping[str, float] | None = None
    final_loss: float | None = None
    loss_difference: float | None = None


def empty_row(cell: Cell, *, state: str, reason: str | None = None) -> Row:
    """The row of a run that has not finished."""
    settings = cell.settings
    return Row(
        name=cell.name,
        engine=settings["engine"],
        mesh=cell.mesh,
        activation_checkpointing=settings["activation_checkpointing"],
        state=state,
        reason=reason,
    )


def measured_row(cell: Cell, folder: RunFolder, *, reference: Losses | None) -> Row:
    """The row of a run that has finished.

    Args:
        cell: the run.
        folder: its folder.
        reference: the losses of the first run that finished; None: this is the first.
    """
    lines, _ = read_lines(folder.metrics)
    summary = read_summary(folder)
    timed = [line for line in lines if "step_seconds" in line and line["step"] > FIRST_STEPS]
    losses = _losses(lines)
    rows = cell.settings["batch_size_per_gpu"] * cell.settings["dp_size"]
    return dataclasses.replace(
        empty_row(cell, state="finished"),
        micro_batches=cell.settings["global_batch_size"] // rows,
        steps=summary["step"],
        timed_steps=len(timed),
        step_seconds=_median(timed, "step_seconds"),
        tokens_per_second=_median(timed, "tokens_per_second"),
        memory_bytes=summary.get("memory_bytes"),
        final_loss=summary.get("final_loss"),
        loss_difference=largest_difference(losses, losses if reference is None else reference),
    )


def with_plan(row: Row, estimate: Estimate | str) -> Row:
    """The row with what was planned, or with the reason why nothing was."""
    if isinstance(estimate, str):
        return dataclasses.replace(row, reason=f"no plan: {estimate}")
    traffic = estimate.traffic
    by_axis = {
        "dp": sum(one.sent for one in traffic if one.axis != "tp"),
        "tp": sum(one.sent for one in traffic if one.axis == "tp"),
    }
    return dataclasses.replace(row, planned_memory_bytes=estimate.memory.total, sent_bytes=by_axis)


def read_losses(folder: RunFolder) -> Losses:
    """The losses of a run by step; one that is not finite is absent."""
    return _losses(read_lines(folder.metrics)[0])


def _losses(lines: Sequence[Mapping[str, Any]]) -> Losses:
    return dict(zip(*column(lines, "loss"), strict=True))


def largest_difference(losses: Losses, reference: Losses, *, steps: int | None = None) -> float | None:
    """The largest difference at a step that both have, of the first `steps`; None where they have none."""
    common = [step for step in losses.keys() & reference.keys() if steps is None or step <= steps]
    return max((abs(losses[step] - reference[step]) for step in common), default=None)


def _median(lines: Sequence[Mapping[str, Any]], name: str) -> float | None:
    return statistics.median(line[name] for line in lines) if lines else None
