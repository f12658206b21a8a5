"""A few steps under torch's profiler, and on GPUs under the record of its allocator: `profile`, `memory_snapshot`.

The first step of a start compiles and allocates, the second makes the profiler ready (on a GPU that takes seconds); the
three after them are recorded. Recorded steps train as any others do, bit for bit, and are slower: at the end of each
the device is waited for, so that all its work lies within it. The trace is the run's own: on the CPU, where Gloo does
not say which ranks it connects, the collectives of the second step are counted, and those of the recorded steps have
the same order.
"""

import gzip
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile, record_function, schedule, supported_activities
from tp2d_mesh import Mesh
from tp2d_mesh.devices import peak_memory, synchronize
from tp2d_mesh.profile import DATA, STEP, WAIT, Named, Step, collectives, recorded_steps, step_times, transfer_times
from tp2d_mesh.testing.counted import Collective, Counted, counted

from tp2d_train.config import TrainConfig
from tp2d_train.report.record import Record
from tp2d_train.runs.folder import RunFolder
from tp2d_train.setup.length import STEPS_BEFORE_PROFILE, STEPS_OF_PROFILE
from tp2d_train.training.profile_table import RankRow, memory_line, rank_row, write_table

LAST = STEPS_BEFORE_PROFILE + STEPS_OF_PROFILE
HISTORY = 200_000  # of the allocator's events: far more than three steps have
T = TypeVar("T")


class Profiling:
    """The recording of one start of a run, on one rank. A `with` block around the training.

    Args:
        config: `profile` and `memory_snapshot` say what is recorded.
        mesh: all ranks; they record the same steps.
        folder: the run's; what is recorded lies in its `profile`, in place of an earlier recording.
        record: of rank 0, which tells the user.
        first_step: the number of the first step of this start.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        mesh: Mesh,
        folder: RunFolder,
        record: Record,
        first_step: int,
    ) -> None:
        self._config, self._mesh, self._folder, self._record = config, mesh, folder, record
        self._first_recorded = first_step + STEPS_BEFORE_PROFILE
        self._done = 0  # steps of this start
        self._written = False
        self._open = ExitStack()  # what is open during one step
        self._profiler = _profiler(mesh.device) if config.profile else None
        self._is_started = False
        self._seen = Counted()
        self._begun = 0.0
        self._walls: list[float] = []
        if mesh.rank == 0:
            shutil.rmtree(folder.profile, ignore_errors=True)

    def over(self, steps: Iterator[T]) -> Iterator[T]:
        """The batches of each step; where it is this step's turn, it is recorded from here until `end_step`."""
        while True:
            self._begun = time.perf_counter()
            with record_function(DATA) if self._is_recording else nullcontext():
                batches = next(steps, None)
            if batches is None:
                return
            self._begin_step()
            yield batches

    @property
    def _is_recording(self) -> bool:
        return STEPS_BEFORE_PROFILE <= self._done < LAST

    def _begin_step(self) -> None:
        on_cpu = self._mesh.device.type == "cpu"
        if self._profiler is not None and self._done == STEPS_BEFORE_PROFILE - 1:
            self._profiler.start()
            self._is_started = True
            if on_cpu:
                self._seen = self._open.enter_context(counted(self._mesh))
        elif self._is_recording:
            if self._config.memory_snapshot and self._done == STEPS_BEFORE_PROFILE:
                _record_memory(on=True)
            if on_cpu:
                self._open.enter_context(_waits_recorded())
            self._open.enter_context(record_function(STEP))

    def end_step(self) -> bool:
        """Ends a step; returns whether it was the last one to record, so that `write` is due."""
        self._done += 1
        if not STEPS_BEFORE_PROFILE <= self._done <= LAST:
            return False
        synchronize(self._mesh.device)
        self._open.close()
        if self._done > STEPS_BEFORE_PROFILE:
            self._walls.append(time.perf_counter() - self._begun)
        if self._profiler is not None:
            self._profiler.step()
        return self._done == LAST

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """A run that has stopped earlier leaves what it has recorded; one that has failed leaves nothing."""
        self._open.close()
        if error is None and self._walls and not self._written:
            self.write()
        elif error is None and not self._walls:
            message = f"nothing was recorded: the run ended after {self._done} steps of this start, and steps"
            self._record.event("warning", message=f"{message} {STEPS_BEFORE_PROFILE + 1} to {LAST} are recorded")
        if self._is_started and self._profiler is not None:
            self._profiler.stop()

    def write(self) -> None:
        """Writes what was recorded, and tells the user; a collective."""
        self._written = True
        self._folder.profile.mkdir(parents=True, exist_ok=True)
        if self._profiler is not None:
            self._profiler.stop()
            self._write_profile(self._profiler)
            self._profiler = None  # it holds the trace
        if self._config.memory_snapshot:
            self._write_memory()

    def _write_profile(self, profiler: profile) -> None:
        trace = _exported(profiler, self._folder.profile / f"rank-{self._mesh.rank}.json.gz")
        steps = recorded_steps(trace, named=[_named(one) for one in self._seen.collectives])
        everyone = self._gathered([collectives(step) for step in steps])
        rows: list[RankRow] = self._gathered(self._row(steps, everyone))
        if self._mesh.rank == 0:
            told = write_table(
                self._folder, rows, config=self._config, first_step=self._first_recorded, steps=len(steps)
            )
            self._record.event("data", message=told)

    def _row(self, steps: list[Step], everyone: list[Any]) -> RankRow:
        mesh, times = self._mesh, []
        for number, step in enumerate(steps):
            same = [ran[number] for ran in everyone]
            times.append(step_times(step, transfers=transfer_times(same, layout=mesh.layout, rank=mesh.rank)))
        return rank_row(times, rank=mesh.rank, walls=self._walls)

    def _write_memory(self) -> None:
        _dump_memory(self._folder.profile / f"memory-rank-{self._mesh.rank}.pickle")
        peaks = self._gathered(peak_memory(self._mesh.device) or 0)
        if self._mesh.rank == 0:
            self._record.event("data", message=memory_line(self._folder, peaks))

    def _gathered(self, value: T) -> list[T]:
        found: list[Any] = [None] * self._mesh.layout.world_size
        dist.all_gather_object(found, value, group=self._mesh.world_group)
        return found


def _profiler(device: torch.device) -> profile:
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # read when the profiler is made; it prints marks of its own else
    activities = [ProfilerActivity.CPU] if device.type == "cpu" else supported_activities()
    return profile(activities=activities, schedule=schedule(wait=0, warmup=1, active=STEPS_OF_PROFILE, repeat=1))


def _exported(profiler: profile, path: Path) -> dict[str, Any]:
    """Writes the trace in one move, and reads it as a viewer will."""
    temporary = path.with_name(f".{path.name}")  # the profiler compresses a file of this ending
    profiler.export_chrome_trace(str(temporary))
    with gzip.open(temporary, "rt", encoding="utf-8") as file:
        trace: dict[str, Any] = json.load(file)
    temporary.replace(path)
    return trace


def _named(collective: Collective) -> Named:
    axis = collective.axis if collective.axis in ("dp", "tp", "world") else "other"
    return axis, collective.kind, collective.size


@contextmanager
def _waits_recorded() -> Iterator[None]:
    """Within the block a wait for a collective is a range in the trace; torch itself makes none on the CPU."""
    plain = dist.Work.wait

    def wait(work: dist.Work, *args: Any, **kwargs: Any) -> Any:
        with record_function(WAIT):
            return plain(work, *args, **kwargs)

    dist.Work.wait = wait  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        dist.Work.wait = plain  # type: ignore[method-assign]


def _record_memory(*, on: bool) -> None:
    """Torch has a record of its allocator's events for CUDA only, under names of its own."""
    torch.cuda.memory._record_memory_history(enabled="all" if on else None, max_entries=HISTORY)


def _dump_memory(path: Path) -> None:
    torch.cuda.memory._dump_snapshot(str(path))
    _record_memory(on=False)
