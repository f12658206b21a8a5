"""Where the time of a step went: every instant of it belongs to one class, so that the classes add up to the step.

Where several things happen at once, the first of these counts:

1. Computing: matrix products, attention, elementwise, optimizer, copies, in this order. What computes is never in the
   way of itself, so communication beside it costs nothing. Among kernels on several streams the one that most of the
   arithmetic is in counts; copies, which other streams make beside it, come last.
2. Communication that nothing hides: of tensor parallelism before that of data parallelism, as the next product waits
   for the first while the second is fetched ahead.
3. Waiting for peers: the part of a collective before its last rank has joined. It is one rank's lack of work or another
   rank's delay, no time that a faster link would save.
4. Waiting for data. On the CPU this comes first: there the loader's own operators run on the thread of the step.
5. The host: what is left. On a GPU it has queued no kernel; on the CPU Python and autograd run between operators.

How long a collective takes once all have joined is known from the rank that joined last: its own part is the shortest.
So only durations are compared between ranks, and clocks need not agree.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tp2d_mesh.layout import Layout
from tp2d_mesh.profile.kernels import CLASSES, COMMUNICATION
from tp2d_mesh.profile.spans import Span, divided, length, overlap, union
from tp2d_mesh.profile.steps import OTHER, Call, Step

AXES = ("tp", "dp", "world", OTHER)
PEERS, LOADER, HOST = "waiting for peers", "waiting for data", "host"
ROWS = (*CLASSES[:-1], *(f"{COMMUNICATION}, {axis}" for axis in AXES), PEERS, LOADER, HOST)
"""The classes of a step's time, in the order of a table."""

_MICROSECOND = 1e-6

Ran = tuple[str, str, float]
"""A collective for comparison with other ranks: its axis, its kind, and its microseconds."""


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """The collectives of one kind over one axis in a step.

    Args:
        axis, kind: see `Call`.
        calls: how many.
        size: bytes of their whole tensors; None where nobody tells.
        running_seconds: in which at least one was under way.
        exposed_seconds: of these, in which the rank computed nothing.
        waiting_seconds: of these, before the last rank had joined.
    """

    axis: str
    kind: str
    calls: int
    size: int | None
    running_seconds: float
    exposed_seconds: float
    waiting_seconds: float


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """Where the time of one step of one rank went.

    Args:
        step_seconds: the step, from asking for its batches to its end.
        seconds: by class, every one of `ROWS`; they add up to `step_seconds`.
        exchanges: its collectives by axis and kind.
    """

    step_seconds: float
    seconds: Mapping[str, float]
    exchanges: tuple[Exchange, ...]

    @property
    def exposed_seconds(self) -> float:
        """Communication during which the rank computed nothing, waiting for peers included."""
        return sum(exchange.exposed_seconds for exchange in self.exchanges)


def collectives(step: Step) -> list[Ran]:
    """What a rank tells the others of its step."""
    return [(call.axis, call.kind, call.span[1] - call.span[0]) for call in step.calls]


def transfer_times(everyone: Sequence[Sequence[Ran]], *, layout: Layout, rank: int) -> list[float | None]:
    """How long each collective of a rank's step took once all of its group had joined.

    Args:
        everyone: what `collectives` gives for the same step of every rank, by rank.
        layout: which ranks are in a group.
        rank: whose collectives are asked for.

    Returns:
        Microseconds in the order of its calls; None over an axis where the group's ranks do not have the same calls,
        or whose ranks are not known.
    """
    dp, tp = (next(group for group in groups if rank in group) for groups in (layout.dp_groups(), layout.tp_groups()))
    shortest = {
        axis: _shortest([[ran for ran in everyone[peer] if ran[0] == axis] for peer in group])
        for axis, group in {"dp": dp, "tp": tp, "world": range(layout.world_size)}.items()
    }
    return [next(shortest[axis], None) if axis in shortest else None for axis, _, _ in everyone[rank]]


def _shortest(ranks: Sequence[Sequence[Ran]]) -> Iterator[float]:
    if any([ran[:2] for ran in ranks[0]] != [ran[:2] for ran in other] for other in ranks):
        return iter(())
    return (min(seconds for _, _, seconds in same) for same in zip(*ranks, strict=True))


def step_times(step: Step, *, transfers: Sequence[float | None] = ()) -> StepTimes:
    """Where the time of a step went.

    Args:
        step: of this rank.
        transfers: what `transfer_times` gives; where they are not known, no time counts as waiting for peers.
    """
    parts = _parts(step, transfers or [None] * len(step.calls))
    computing = [((name,), step.work.get(name, ())) for name in CLASSES[:-1]]
    moving = [(key, spans) for key, (spans, _) in parts.items()]
    waiting = [((*key, PEERS), spans) for key, (_, spans) in parts.items()]
    loading = [((LOADER,), step.data)]
    communicating = [*moving, *waiting]
    layers = [*computing, *communicating, *loading] if step.on_gpu else [*loading, *computing, *communicating]
    shares, left = divided([step.span], layers)
    seconds = {key: length(spans) * _MICROSECOND for key, spans in shares.items()}
    found = dict.fromkeys(ROWS, 0.0) | {HOST: length(left) * _MICROSECOND}
    for key, amount in seconds.items():
        found[_row(key)] += amount
    return StepTimes(
        step_seconds=length([step.span]) * _MICROSECOND,
        seconds=found,
        exchanges=tuple(_exchange(step, key, seconds) for key in parts),
    )


def _parts(step: Step, transfers: Sequence[float | None]) -> dict[tuple[str, str], tuple[list[Span], list[Span]]]:
    """By axis and kind, tp first: when its collectives moved something, and when they waited for a rank."""
    keys = sorted({(call.axis, call.kind) for call in step.calls}, key=lambda key: (AXES.index(key[0]), key[1]))
    parts: dict[tuple[str, str], tuple[list[Span], list[Span]]] = {key: ([], []) for key in keys}
    for call, transfer in zip(step.calls, transfers, strict=True):
        moving, waiting = parts[call.axis, call.kind]
        joined = call.span[0] if transfer is None else max(call.span[0], call.span[1] - transfer)
        moving += overlap(call.holds, [(joined, call.span[1])])
        waiting += overlap(call.holds, [(call.span[0], joined)])
    return parts


def _row(key: tuple[str, ...]) -> str:
    """The row of the table that a layer counts for."""
    if len(key) == 1:
        return key[0]
    return f"{COMMUNICATION}, {key[0]}" if len(key) == 2 else PEERS


def _exchange(step: Step, key: tuple[str, str], seconds: Mapping[tuple[str, ...], float]) -> Exchange:
    calls: list[Call] = [call for call in step.calls if (call.axis, call.kind) == key]
    sizes = [call.size for call in calls if call.size is not None]
    waiting = seconds[*key, PEERS]
    return Exchange(
        axis=key[0],
        kind=key[1],
        calls=len(calls),
        size=sum(sizes) if len(sizes) == len(calls) else None,
        running_seconds=length(union(call.span for call in calls)) * _MICROSECOND,
        exposed_seconds=seconds[key] + waiting,
        waiting_seconds=waiting,
    )
