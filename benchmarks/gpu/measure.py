"""Measures one contender in this process: losses, times of steps, memory, then the profile of a few more steps."""

import gc
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function
from tp2d_mesh import Layout, Mesh, build_mesh
from tp2d_mesh.devices import peak_memory, synchronize
from tp2d_mesh.profile import STEP, StepProfile, step_profile

from gpu.contenders import Contender
from gpu.loops import Compiled, Loop, Masters, Plain, Setting
from gpu.ours import Ours
from gpu.rows import Batch, batches
from gpu.shapes import Workload, model_config
from gpu.titan import Titan


@dataclass(frozen=True, kw_only=True)
class How:
    """How every contender is measured.

    Args:
        device: `cuda` or `cpu`.
        half: bf16; else fp32.
        backend: of `torch.compile`.
        warmup: steps before the timed ones.
        steps: timed steps.
        profiled: steps after them, under the profiler.
        traces: folder that keeps the profiler's traces; None keeps none.
    """

    device: str
    half: bool
    backend: str
    warmup: int
    steps: int
    profiled: int
    traces: Path | None

    def batches(self, workload: Workload) -> list[Batch]:
        """The rows of all steps; the same for every contender."""
        return batches(workload, steps=self.warmup + self.steps + self.profiled)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What one contender did.

    Args:
        losses: of every step, warm-up and timed ones.
        norms: of the gradient, likewise.
        median_seconds: of the timed steps, on the device's clock.
        p90_seconds: nine of ten were quicker.
        host_seconds: median time in which the host had queued a step.
        peak_bytes: the most that was in use, weights and optimizer included.
        first_seconds: of building the loop and of its warm-up, compilation included.
        profile: of the steps after the timed ones.
    """

    losses: Sequence[float]
    norms: Sequence[float]
    median_seconds: float
    p90_seconds: float
    host_seconds: float
    peak_bytes: int | None
    first_seconds: float
    profile: StepProfile

    def as_json(self) -> dict[str, Any]:
        """The figures as JSON."""
        return {**vars(self), "profile": vars(self.profile)}


def figures(workload: Workload, contender: Contender, how: How) -> Figures:
    """Builds a contender's loop and runs it: warm-up, timed steps, profiled steps."""
    with _mesh(how.device) as mesh:
        begin = time.perf_counter()
        config = model_config(workload.shape)
        loop = built(Setting(config=config, contender=contender, mesh=mesh, half=how.half, backend=how.backend))
        made = how.batches(workload)
        timed = how.warmup + how.steps
        with _without_collection():
            warm = _run(loop, made[: how.warmup], mesh.device)
            ready = time.perf_counter() - begin
            ran = _run(loop, made[how.warmup : timed], mesh.device)
            peak = peak_memory(mesh.device)
            profiled = _profiled(loop, made[timed:], mesh.device, trace=_trace_file(workload, contender, how))
    return Figures(
        losses=[float(loss) for loss, _ in warm.results + ran.results],
        norms=[float(norm) for _, norm in warm.results + ran.results],
        median_seconds=median(ran.seconds),
        p90_seconds=_p90(ran.seconds),
        host_seconds=median(ran.host_seconds),
        peak_bytes=peak,
        first_seconds=ready,
        profile=profiled,
    )


def built(setting: Setting) -> Loop:
    """The loop of a contender."""
    kind, mixed = setting.contender.kind, setting.contender.mixed
    plain: Callable[[Setting], Loop] = Masters if mixed == "masters" else Plain
    makers: dict[str, Callable[[Setting], Loop]] = {"plain": plain, "compiled": Compiled, "titan": Titan, "ours": Ours}
    return makers[kind](setting)


@dataclass(frozen=True, kw_only=True)
class _Ran:
    results: list[tuple[torch.Tensor, torch.Tensor]]
    seconds: list[float]
    host_seconds: list[float]


def _run(loop: Loop, made: Sequence[Batch], device: torch.device) -> _Ran:
    """One step after another without waiting for any; each is timed by the device."""
    results, host, marks = [], [], [_Mark(device)]
    for batch in made:
        begin = time.perf_counter()
        results.append(loop.step(batch))
        host.append(time.perf_counter() - begin)
        marks.append(_Mark(device))
    synchronize(device)
    seconds = [start.seconds_until(stop) for start, stop in pairwise(marks)]
    return _Ran(results=results, seconds=seconds, host_seconds=host)


class _Mark:
    """A moment on the device's own clock; on the CPU, of this process."""

    def __init__(self, device: torch.device) -> None:
        self.at = time.perf_counter()
        self.event = torch.cuda.Event(enable_timing=True) if device.type == "cuda" else None
        if self.event is not None:
            self.event.record()

    def seconds_until(self, later: "_Mark") -> float:
        if self.event is None or later.event is None:
            return later.at - self.at
        return self.event.elapsed_time(later.event) / 1000


def _profiled(loop: Loop, made: Sequence[Batch], device: torch.device, *, trace: Path | None) -> StepProfile:
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as recorded:
        for batch in made:
            with record_function(STEP):
                loop.step(batch)
        synchronize(device)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json" if trace is None else trace
        recorded.export_chrome_trace(str(file))
        return step_profile(json.loads(file.read_text())["traceEvents"])


def _trace_file(workload: Workload, contender: Contender, how: How) -> Path | None:
    if how.traces is None:
        return None
    words = f"{workload.name} {contender.name}"
    return how.traces / f"{''.join(c if c.isalnum() else '-' for c in words)}.json"


def _p90(seconds: Sequence[float]) -> float:
    return quantiles(seconds, n=10, method="inclusive")[-1] if len(seconds) > 1 else seconds[0]


@contextmanager
def _mesh(device: str) -> Iterator[Mesh]:
    """A mesh of this process alone."""
    where = torch.device("cuda", 0) if device == "cuda" else torch.device("cpu")
    mesh = build_mesh(Layout(dp=1, tp=1), device=where)
    try:
        yield mesh
    finally:
        mesh.close()


@contextmanager
def _without_collection() -> Iterator[None]:
    """Python's garbage is collected before, not in the middle of a step; the same for every contender."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
