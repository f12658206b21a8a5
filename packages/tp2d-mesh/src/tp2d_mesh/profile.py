"""Where the time of a step went: the kernels of a trace by class of work, and how often the host waited.

It reads the events of a trace that `torch.profiler` has written (`export_chrome_trace`, its `traceEvents`) and knows
kernels by their names: cuBLAS, CUTLASS, flash attention, cuDNN, Inductor's Triton kernels, NCCL, ATen. On the CPU,
which has no kernels, it counts operators, each with the time that is not in an operator inside it. Nothing here imports
torch.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

STEP = "tp2d step"
"""The name of the `torch.profiler.record_function` range around each step that is to be counted."""

CLASSES = ("matrix products", "attention", "elementwise and other", "optimizer", "copies and casts", "communication")
"""Every class of work. The optimizer's has the gradient norm and clipping; loss, norms, embedding are elementwise."""

_OTHER = CLASSES[2]
_MATRIX = r"gemm|gemv|nvjet|cutlass|cublas|splitk|matmul|^aten::(mm|addmm|bmm|baddbmm|linear|_scaled_mm)\b|^mkldnn"
_ATTENTION = r"flash|fmha|sdpa|attention|dotproduct|varlen|flex_"
_COPIES = r"memcpy|memset|copy|catarray|chunk_cat|^aten::(cat|clone|contiguous|to|fill_|zero_)\b"
# The first rule that finds its pattern decides. Flash attention's kernels have "cutlass" in their names, and foreach
# kernels of casts and copies share a prefix with the optimizer's, so the order matters.
_RULES = tuple(
    (re.compile(pattern, re.IGNORECASE), name)
    for pattern, name in (
        (r"nccl|gloo|nvshmem|symm_mem|c10d", "communication"),
        (r"^triton_tem_.*flex_attention", "attention"),
        (r"^triton_tem_", "matrix products"),
        (r"^triton_", _OTHER),  # Inductor names what it fused, a neighbouring product or attention too
        (_ATTENTION, "attention"),
        (r"foreach_copy|multi_tensor_apply.*copy|split_with_sizes_copy", "copies and casts"),
        (r"multi_tensor_apply|_foreach_|adam|sgd|optimizer|lpnorm|vector_norm|clip_grad", "optimizer"),
        (_MATRIX, "matrix products"),
        (_COPIES, "copies and casts"),
    )
)
_DEVICE_WORK = ("kernel", "gpu_memcpy", "gpu_memset")
_HOST_WAITS = re.compile(r"^cu(da)?(Stream|Device|Event|Ctx)Synchronize|^cudaMemcpy$")
_READ = "aten::_local_scalar_dense"
_MICROSECOND = 1e-6

Event = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class StepProfile:
    """What one step did, a mean over the steps of a trace.

    Args:
        seconds: time by class of work, every one of `CLASSES`; work on several streams at once counts for each.
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


def kernel_class(name: str) -> str:
    """The class of work of a kernel or operator by its name; one of `CLASSES`."""
    return next((found for pattern, found in _RULES if pattern.search(name)), _OTHER)


def step_profile(events: Iterable[Event]) -> StepProfile:
    """What a step did, from the events of a trace.

    Args:
        events: `traceEvents` of an exported trace. Each step that is to be counted is in a range named `STEP`, and
            the device has finished before the trace ends.

    Raises:
        ValueError: no range named `STEP`, or nothing that ran.
    """
    whole = [event for event in events if event.get("ph") == "X"]
    ranges = [_span(e) for e in whole if e["name"] == STEP and e.get("cat") == "user_annotation"]
    if not ranges:
        raise ValueError(f"the trace has no range named {STEP!r}: put record_function({STEP!r}) around each step.")
    work = [e for e in whole if e.get("cat") in _DEVICE_WORK]
    timed = [(e, float(e["dur"])) for e in work] or list(_own_times(_in_ranges(whole, ranges, "cpu_op")))
    if not timed:
        raise ValueError("the trace has neither kernels nor operators: nothing ran in its steps.")
    seconds = dict.fromkeys(CLASSES, 0.0)
    for event, micros in timed:
        seconds[kernel_class(event["name"])] += micros * _MICROSECOND / len(ranges)
    spans = [_span(event) for event, _ in timed]
    called = [e["name"] for e in _in_ranges(whole, ranges, "cpu_op", "cuda_runtime", "cuda_driver")]
    return StepProfile(
        seconds=seconds,
        busy_seconds=_union(spans) * _MICROSECOND / len(ranges),
        span_seconds=(max(stop for _, stop in spans) - min(start for start, _ in spans)) * _MICROSECOND / len(ranges),
        kernels=len(timed) / len(ranges),
        waits=sum(bool(_HOST_WAITS.match(name)) for name in called) / len(ranges),
        reads=called.count(_READ) / len(ranges),
        attention=tuple(sorted({short_name(e["name"]) for e, _ in timed if _is_attention(e["name"])})),
    )


def short_name(name: str) -> str:
    """A kernel's name without its return type, template arguments and parameters."""
    plain = name.removeprefix("void ").replace("(anonymous namespace)::", "")
    return re.split(r"[<(]", plain)[0].strip()


def _is_attention(name: str) -> bool:
    return kernel_class(name) == "attention" and not name.startswith("autograd::") and not name.endswith("Backward0")


def _span(event: Event) -> tuple[float, float]:
    start = float(event["ts"])
    return start, start + float(event["dur"])


def _in_ranges(events: Iterable[Event], ranges: Sequence[tuple[float, float]], *kinds: str) -> list[Event]:
    """The events of these categories that began in a step."""
    found = (event for event in events if event.get("cat") in kinds)
    return [e for e in found if any(start <= float(e["ts"]) < stop for start, stop in ranges)]


def _own_times(operators: Iterable[Event]) -> Iterator[tuple[Event, float]]:
    """Each operator with its microseconds outside the operators that it called, thread by thread."""
    open_calls: list[tuple[Event, float, list[float]]] = []  # the call, its end, the durations of what it called
    for event in sorted(operators, key=lambda e: (e.get("tid", 0), float(e["ts"]), -float(e["dur"]))):
        while open_calls and not _inside(event, open_calls[-1]):
            call, _, inner = open_calls.pop()
            yield call, float(call["dur"]) - sum(inner)
        if open_calls:
            open_calls[-1][2].append(float(event["dur"]))
        open_calls.append((event, _span(event)[1], []))
    for call, _, inner in open_calls:
        yield call, float(call["dur"]) - sum(inner)


def _inside(event: Event, call: tuple[Event, float, list[float]]) -> bool:
    return event.get("tid", 0) == call[0].get("tid", 0) and float(event["ts"]) < call[1]


def _union(spans: Sequence[tuple[float, float]]) -> float:
    """The length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, reached))
        reached = max(reached, stop)
    return total
