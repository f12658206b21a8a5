"""What is said of recorded steps: `profile/table.json` with every rank, `profile/table.md` to read, and one line."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from statistics import fmean, median
from typing import Any

from tp2d_mesh.profile import ROWS, Exchange, StepTimes

from tp2d_train.config import TrainConfig
from tp2d_train.report.metrics import write_json
from tp2d_train.runs.folder import RunFolder, replace_file

SHOWN = 5  # classes in the line, the largest first
MIB, GIB = 2**20, 2**30


@dataclass(frozen=True, kw_only=True)
class RankRow:
    """What one rank found, a mean over its recorded steps.

    Args:
        rank: which.
        step_seconds: a step, by the trace; the classes add up to it.
        wall_seconds: a step, by the host's clock.
        seconds: by class of `tp2d_mesh.profile.ROWS`.
        exposed_seconds: communication during which the rank computed nothing.
        exchanges: the collectives by axis and kind, as JSON of `tp2d_mesh.profile.Exchange`.
    """

    rank: int
    step_seconds: float
    wall_seconds: float
    seconds: dict[str, float]
    exposed_seconds: float
    exchanges: list[dict[str, Any]]


def rank_row(times: Sequence[StepTimes], *, rank: int, walls: Sequence[float]) -> RankRow:
    """The row of one rank.

    Args:
        times: of its recorded steps.
        rank: which it is.
        walls: seconds of the same steps by the host's clock.
    """
    return RankRow(
        rank=rank,
        step_seconds=fmean(one.step_seconds for one in times),
        wall_seconds=fmean(walls),
        seconds={name: fmean(one.seconds[name] for one in times) for name in ROWS},
        exposed_seconds=fmean(one.exposed_seconds for one in times),
        exchanges=list(_mean_exchanges([one.exchanges for one in times])),
    )


def _mean_exchanges(several: Sequence[Sequence[Exchange]]) -> Iterator[dict[str, Any]]:
    """By axis and kind, a mean over steps or ranks; one that lacks a kind counts with nothing."""
    found: dict[tuple[str, str], list[Exchange]] = {}
    for exchanges in several:
        for one in exchanges:
            found.setdefault((one.axis, one.kind), []).append(one)
    for (axis, kind), same in found.items():
        numbers = {f.name: [getattr(one, f.name) for one in same] for f in fields(Exchange) if f.name not in _NAMES}
        means = {name: None if None in values else sum(values) / len(several) for name, values in numbers.items()}
        yield {"axis": axis, "kind": kind, **means}


_NAMES = ("axis", "kind")


def write_table(folder: RunFolder, rows: Sequence[RankRow], *, config: TrainConfig, first_step: int, steps: int) -> str:
    """Writes both tables, and returns the line for the user.

    Args:
        folder: the run's; its `profile` exists.
        rows: of every rank, by rank.
        config: of the run.
        first_step: the first recorded step of the run.
        steps: how many were recorded.
    """
    what = f"steps {first_step} to {first_step + steps - 1}" if steps > 1 else f"step {first_step}"
    table = {
        "first_step": first_step,
        "steps": steps,
        "engine": config.engine,
        "mesh": str(config.layout),
        "classes": list(ROWS),
        "ranks": [asdict(row) for row in rows],
    }
    write_json(folder.profile / "table.json", table)
    title = f"{what[0].upper()}{what[1:]} of run {config.name}, {config.engine} on {config.layout}"
    replace_file(folder.profile / "table.md", ("\n".join(_page(rows, title=title)) + "\n").encode())
    return f"profile of {what}: {_line(rows)}; table.md and traces in {folder.profile}"


def _shares(rows: Sequence[RankRow]) -> dict[str, float]:
    """Each class's share of the step, over all ranks; they add up to 1."""
    step = fmean(row.step_seconds for row in rows)
    return {name: fmean(row.seconds[name] for row in rows) / step for name in ROWS}


def _line(rows: Sequence[RankRow]) -> str:
    step = fmean(row.step_seconds for row in rows)
    largest = sorted(_shares(rows).items(), key=lambda item: -item[1])[:SHOWN]
    return ", ".join([f"{step * 1e3:.1f} ms a step", *(f"{name} {share:.0%}" for name, share in largest if share)])


def _page(rows: Sequence[RankRow], *, title: str) -> Iterator[str]:
    shares, step = _shares(rows), fmean(row.step_seconds for row in rows)
    exposed = fmean(row.exposed_seconds for row in rows)
    yield from (
        "# Where the time of a step goes",
        "",
        f"{title}, {len(rows)} {'rank' if len(rows) == 1 else 'ranks'}. Every instant of a rank's step counts for one "
        "class; a rank's row is the mean of its steps. Shares and means are over ranks and add up to the step.",
        "",
    )
    lines = [_times(name, [row.seconds[name] for row in rows], shares[name]) for name in ROWS if shares[name]]
    yield from _table("class | share | mean ms | min ms | median ms | max ms", lines)
    yield from _table(None, [_times("step", [row.step_seconds for row in rows], 1.0)])
    yield from (
        "",
        f"Exposed communication, in which a rank computes nothing: {exposed * 1e3:.2f} ms, {exposed / step:.1%} of the "
        "step, waiting for peers included.",
        "",
    )
    exchanges = [[Exchange(**one) for one in row.exchanges] for row in rows]
    head = "collectives of a step, mean over ranks | calls | MiB | under way ms | exposed ms | of these waiting ms"
    yield from _table(head, [_collectives(one) for one in _mean_exchanges(exchanges)])


def _times(name: str, seconds: Sequence[float], share: float) -> list[str]:
    numbers = (fmean(seconds), min(seconds), median(seconds), max(seconds))
    return [name, f"{share:.1%}", *(f"{number * 1e3:.2f}" for number in numbers)]


def _collectives(exchange: dict[str, Any]) -> list[str]:
    size = "" if exchange["size"] is None else f"{exchange['size'] / MIB:.2f}"
    times = (exchange[name] * 1e3 for name in ("running_seconds", "exposed_seconds", "waiting_seconds"))
    return [
        f"{exchange['axis']} {exchange['kind']}",
        f"{exchange['calls']:g}",
        size,
        *(f"{time:.2f}" for time in times),
    ]


def _table(head: str | None, lines: Sequence[Sequence[str]]) -> Iterator[str]:
    if head is not None:
        columns = head.split(" | ")
        yield f"| {' | '.join(columns)} |"
        yield f"|---|{'--:|' * (len(columns) - 1)}"
    yield from (f"| {' | '.join(line)} |" for line in lines)


def memory_line(folder: RunFolder, peaks: Sequence[int]) -> str:
    """What the user is told of memory: the most of any rank.

    Args:
        folder: the run's.
        peaks: bytes, by rank.
    """
    most = max(peaks)
    return (
        f"memory: at most {most / GIB:.2f} GiB, on rank {peaks.index(most)} (least {min(peaks) / GIB:.2f} GiB); "
        f"snapshots for pytorch.org/memory_viz in {folder.profile}"
    )
