"""The work of a step by class, its kernels, and how often the host waited, without a word on where it lay in time.

On the CPU, which has no kernels, operators count, each with the time that is not in an operator inside it.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tp2d_mesh.profile.events import DEVICE_WORK, STEP, Event, complete, innermost, of_kind, ranges, span_of, thread_of
from tp2d_mesh.profile.kernels import CLASSES, is_attention, kernel_class, short_name
from tp2d_mesh.profile.spans import Span, divided, length, union

_HOST_WAITS = re.compile(r"^cu(da)?(Stream|Device|Event|Ctx)Synchronize|^cudaMemcpy$")
_READ = "aten::_local_scalar_dense"
_MICROSECOND = 1e-6


@dataclass(frozen=True, kw_only=True)
class StepProfile:
    """What one step did, a mean over the steps of a trace.

    Args:
        seconds: time by class of work, every one of `CLASSES`. Where several streams (on the CPU: threads) work at
            once, an instant counts for the class that stands first in `CLASSES`, so that they add up to `busy_seconds`
            and communication is what nothing else hides.
        busy_seconds: time in which at least one kernel ran.
        span_seconds: from the first kernel's start to the last one's end.
        kernels: how many kernels ran (on the CPU: operators), copies and fills by the device included.
        waits: how often the host waited for the device, by calls of the CUDA runtime.
        reads: how often a tensor's value was read on the host (`.item()`, `float()`), which waits on a device.
        attention: names of the attention kernels (operators), without their template arguments.
    """

    seconds: Mapping[str, float]
    busy_seconds: float
    span_seconds: float
    kernels: float
    waits: float
    reads: float
    attention: tuple[str, ...]


def step_profile(events: Iterable[Event]) -> StepProfile:
    """What a step did, from the events of a trace.

    Args:
        events: `traceEvents` of an exported trace. Each step that is to be counted is in a range named `STEP`, and
            the device has finished before the trace ends.

    Raises:
        ValueError: no range named `STEP`, or nothing that ran.
    """
    whole = complete(events)
    steps = [span_of(event) for event in ranges(whole, STEP)]
    if not steps:
        raise ValueError(f"the trace has no range named {STEP!r}: put record_function({STEP!r}) around each step.")
    work = [event for event in whole if event.get("cat") in DEVICE_WORK]
    pieces = [(event, span_of(event)) for event in work] or _pieces(of_kind(whole, "cpu_op", within=steps))
    if not pieces:
        raise ValueError("the trace has neither kernels nor operators: nothing ran in its steps.")
    counted = work or of_kind(whole, "cpu_op", within=steps)
    called = [e["name"] for e in of_kind(whole, "cpu_op", "cuda_runtime", "cuda_driver", within=steps)]
    seconds = _MICROSECOND / len(steps)
    shares = _by_class(pieces)
    busy = union(span for _, span in pieces)
    return StepProfile(
        seconds={name: length(spans) * seconds for name, spans in shares.items()},
        busy_seconds=length(busy) * seconds,
        span_seconds=(busy[-1][1] - busy[0][0]) * seconds,
        kernels=len(counted) / len(steps),
        waits=sum(bool(_HOST_WAITS.match(name)) for name in called) / len(steps),
        reads=called.count(_READ) / len(steps),
        attention=tuple(sorted({short_name(e["name"]) for e in counted if is_attention(e["name"])})),
    )


def _pieces(operators: Iterable[Event]) -> list[tuple[Event, Span]]:
    """What every thread did, piece by piece."""
    threads: dict[object, list[Event]] = {}
    for event in operators:
        threads.setdefault(thread_of(event), []).append(event)
    return [piece for calls in threads.values() for piece in innermost(calls)]


def _by_class(pieces: Iterable[tuple[Event, Span]]) -> Mapping[str, list[Span]]:
    spans: dict[str, list[Span]] = {name: [] for name in CLASSES}
    for event, span in pieces:
        spans[kernel_class(event["name"])].append(span)
    shares, _ = divided(union(span for found in spans.values() for span in found), spans.items())
    return shares
