"""One recorded step of one rank: what ran in it, its collectives, and when it waited for the loader.

On a GPU the kernels say what ran, and NCCL's say in their arguments for which process group (`build_mesh` describes its
groups as `mesh_dp` and `mesh_tp`). The CPU has one time line: the thread of the step with its operators. There a
collective holds the step up while it is launched and while it is waited for, in the operator
`_c10d_functional::wait_tensor` or in a range named `WAIT`. Gloo does not say for which group it works, so the caller
tells what a step's collectives are, in their order.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tp2d_mesh.profile.events import (
    DATA,
    DEVICE_WORK,
    STEP,
    WAIT,
    Event,
    by_start,
    complete,
    innermost,
    of_kind,
    ranges,
    span_of,
    thread_of,
)
from tp2d_mesh.profile.kernels import COMMUNICATION, kernel_class
from tp2d_mesh.profile.spans import Span

OTHER = "other"
_AXES = {"mesh_dp": "dp", "mesh_tp": "tp", "default_pg": "world"}
# The first that is found: a reduce-scatter has a reduce and a scatter in its name.
_KINDS = tuple(
    (re.compile(pattern, re.IGNORECASE), kind)
    for pattern, kind in (
        ("reduce_?scatter", "reduce_scatter"),
        ("all_?gather", "all_gather"),
        ("all_?reduce", "all_reduce"),
        ("all_?to_?all", "all_to_all"),
        ("broadcast", "broadcast"),
        ("send|recv", "send_recv"),
        ("gather", "gather"),
        ("scatter", "scatter"),
        ("reduce", "reduce"),
    )
)
_ELEMENT_BYTES = {
    "Float": 4,
    "BFloat16": 2,
    "Half": 2,
    "Double": 8,
    "Long": 8,
    "Int": 4,
    "Byte": 1,
    "Char": 1,
    "Bool": 1,
}
_LAUNCH = re.compile(r"^(_c10d_functional|c10d)::(?!wait_tensor|_wrap_tensor|barrier|monitored_barrier)")
_WAIT_OPERATOR = "_c10d_functional::wait_tensor"
# Nodes of autograd's graph and what calls them: the time that is theirs alone is Python's and the engine's.
_BETWEEN = re.compile(r"^(torch::)?autograd::|^\w+Backward\d*$")

Named = tuple[str, str, int]
"""A collective as the caller knows it: its axis, its kind, and the bytes of its whole tensor."""


@dataclass(frozen=True, kw_only=True)
class Call:
    """One collective.

    Args:
        axis: `dp`, `tp`, `world` (all ranks), or `other`: another process group, or one that is not known.
        kind: all_reduce, all_gather, reduce_scatter, broadcast, ...
        size: bytes of the whole tensor; None where nobody tells.
        span: from its launch to its end, on a GPU its kernel's.
        holds: when it holds the step up, unless something else computes meanwhile.
    """

    axis: str
    kind: str
    size: int | None
    span: Span
    holds: tuple[Span, ...]


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step.

    Args:
        span: from asking for its batches to its end.
        work: when something of each class was computed, by class; communication is in `calls`. Spans may overlap.
        calls: its collectives in the order of their beginning.
        data: when it waited for its batches.
        on_gpu: whether the work is a GPU's. Else it is the thread's that the step ran on.
    """

    span: Span
    work: Mapping[str, Sequence[Span]]
    calls: tuple[Call, ...]
    data: tuple[Span, ...]
    on_gpu: bool


def recorded_steps(trace: Mapping[str, Any], *, named: Sequence[Named] = ()) -> list[Step]:
    """The steps of a trace.

    Args:
        trace: as `json.load` gives it. Each step is in a range named `STEP`, the wait for its batches before it in one
            named `DATA`. A GPU has nothing left to do at a step's end.
        named: on the CPU, the collectives of a step in the order in which it launches them. Where a step has others,
            the axis of all of its collectives is `other`.
    """
    whole = complete(trace["traceEvents"])
    loads = [span_of(event) for event in ranges(whole, DATA)]
    kernels = any(event.get("cat") in DEVICE_WORK for event in whole)
    found, before = [], float("-inf")
    for event in ranges(whole, STEP):
        start, stop = span_of(event)
        data = [load for load in loads if before <= load[0] < start][-1:]  # the last: others led to no step
        span = (data[0][0] if data else start, stop)
        if kernels:
            work, calls = _on_gpu(of_kind(whole, *DEVICE_WORK, within=[span]), groups=_groups(trace))
        else:
            work, calls = _on_cpu(_of_thread(whole, event, span), named)
        found.append(Step(span=span, work=work, calls=tuple(calls), data=tuple(data), on_gpu=kernels))
        before = stop
    return found


def _on_gpu(kernels: Iterable[Event], *, groups: Mapping[str, str]) -> tuple[dict[str, list[Span]], list[Call]]:
    work: dict[str, list[Span]] = {}
    calls = []
    for event in by_start(kernels):
        kind = kernel_class(event["name"])
        if kind == COMMUNICATION:
            calls.append(_kernel_call(event, groups))
        else:
            work.setdefault(kind, []).append(span_of(event))
    return work, calls


def _kernel_call(event: Event, groups: Mapping[str, str]) -> Call:
    args = event.get("args", {})
    described = args.get("Process Group Description") or groups.get(str(args.get("Process Group Name")), "")
    elements = max(int(args.get("In msg nelems", 0)), int(args.get("Out msg nelems", 0)))
    width = _ELEMENT_BYTES.get(str(args.get("dtype")))
    return Call(
        axis=_AXES.get(described, OTHER),
        kind=_kind(event["name"]),
        size=elements * width if elements and width else None,
        span=span_of(event),
        holds=(span_of(event),),
    )


def _groups(trace: Mapping[str, Any]) -> dict[str, str]:
    """The description of every process group by its name, where the trace has a list of them."""
    listed = trace.get("distributedInfo", {}).get("pg_config", [])
    return {str(group.get("pg_name")): str(group.get("pg_desc")) for group in listed if isinstance(group, Mapping)}


def _kind(name: str) -> str:
    return next((kind for pattern, kind in _KINDS if pattern.search(name)), OTHER)


def _of_thread(events: Iterable[Event], step: Event, span: Span) -> list[Event]:
    """The operators and waits of the step's own thread, where the CPU computes forward and backward."""
    found = of_kind(events, "cpu_op", "user_annotation", within=[span])
    mine = [event for event in found if thread_of(event) == thread_of(step)]
    return by_start(event for event in mine if event["cat"] == "cpu_op" or event["name"] == WAIT)


def _on_cpu(events: Sequence[Event], named: Sequence[Named]) -> tuple[dict[str, list[Span]], list[Call]]:
    work: dict[str, list[Span]] = {}
    for event, span in innermost(events):
        name = event["name"]
        if name not in (WAIT, _WAIT_OPERATOR) and not _LAUNCH.match(name) and not _BETWEEN.match(name):
            work.setdefault(kernel_class(name), []).append(span)
    return work, _named(_launched(events), named)


@dataclass(kw_only=True)
class _Launched:
    name: str
    holds: list[Span]
    waited: bool = field(default=False)

    @property
    def is_functional(self) -> bool:
        return self.name.startswith("_c10d_functional")


def _launched(events: Iterable[Event]) -> list[_Launched]:
    """The collectives that a thread has launched and waited for."""
    found: list[_Launched] = []
    inside, just_launched = float("-inf"), False
    for event in events:
        start, stop = span_of(event)
        if start < inside:
            continue
        if event["name"] in (WAIT, _WAIT_OPERATOR):
            call = _waited_for(found, functional=event["name"] != WAIT, just_launched=just_launched)
            if call is not None:
                call.holds.append((start, stop))
                call.waited = True
            inside = stop
        elif _LAUNCH.match(event["name"]):
            found.append(_Launched(name=event["name"], holds=[(start, stop)]))
            inside = stop
        just_launched = bool(_LAUNCH.match(event["name"]))
    return found


def _waited_for(found: Sequence[_Launched], *, functional: bool, just_launched: bool) -> _Launched | None:
    """What a wait is for: the last functional collective; else the one just launched, or the oldest still open."""
    own = [call for call in found if call.is_functional == functional and not call.waited]
    if not own:
        return None
    return own[-1] if functional or just_launched else own[0]


def _named(launched: Sequence[_Launched], named: Sequence[Named]) -> list[Call]:
    kinds = [_kind(call.name) for call in launched]
    names: Sequence[tuple[str, str, int | None]] = named
    if kinds != [kind for _, kind, _ in named]:
        names = [(OTHER, kind, None) for kind in kinds]
    return [
        Call(axis=axis, kind=kind, size=size, span=(call.holds[0][0], call.holds[-1][1]), holds=tuple(call.holds))
        for call, (axis, kind, size) in zip(launched, names, strict=True)
    ]
