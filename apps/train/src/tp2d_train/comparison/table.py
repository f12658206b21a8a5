"""The rows of a comparison as text: aligned or a terminal's table, and Markdown."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from tp2d_train.comparison.rows import FIRST_STEPS, Losses, Row, largest_difference
from tp2d_train.report.table import show_table

MIB = 1 << 20
BOUND, BOUND_STEPS = 1e-5, 20
"""In fp32 the losses of the first `BOUND_STEPS` steps differ by less than `BOUND` (nats) between any two meshes and
engines: the arithmetic is the same but for its order. A float32 rounds a loss of 8 by 5e-7, so this leaves a factor of
20 for what the steps make of such differences."""

_COLUMNS: dict[str, Callable[[Row], str]] = {
    "engine": lambda row: row.engine,
    "mesh": lambda row: row.mesh,
    "recomputed": lambda row: row.activation_checkpointing,
    "state": lambda row: row.state,
    "micro-batches": lambda row: _number(row.micro_batches, "d"),
    "ms a step": lambda row: _number(row.step_seconds, ".1f", scale=1000),
    "tokens/s": lambda row: _number(row.tokens_per_second, ",.0f"),
    "MiB planned": lambda row: _mib(row.planned_memory_bytes),
    "MiB measured": lambda row: _mib(row.memory_bytes),
    "MiB sent over dp": lambda row: _mib((row.sent_bytes or {}).get("dp"), ".3g"),
    "MiB sent over tp": lambda row: _mib((row.sent_bytes or {}).get("tp"), ".3g"),
    "final loss": lambda row: _number(row.final_loss, ".6f"),
    "largest difference": lambda row: _number(row.loss_difference, ".1e"),
}


def show(rows: Sequence[Row], notes: Sequence[str]) -> None:
    """Prints the table, and the notes below it; a table of lines on a terminal, aligned text in a pipe."""
    heads, cells = table_of(rows)
    show_table(heads, cells, whole=("engine", "mesh"), numbers=[head for head in heads if head not in _WORDS])
    print("\n".join(["", *notes]))


def markdown(rows: Sequence[Row], notes: Sequence[str]) -> str:
    """The table and the notes as Markdown."""
    heads, cells = table_of(rows)
    rule = [":---" if head in _WORDS else "---:" for head in heads]
    lines = [f"| {' | '.join(line)} |" for line in (heads, rule, *cells)]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes), ""])


def table_of(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """The heads and the cells; a column without a value is left out, and recomputation where all have the same."""
    columns = {head: [cell(row) for row in rows] for head, cell in _COLUMNS.items()}
    if len({row.activation_checkpointing for row in rows}) == 1:
        del columns["recomputed"]
    shown = {head: values for head, values in columns.items() if any(values)}
    return list(shown), [list(line) for line in zip(*shown.values(), strict=True)]


def notes_of(rows: Sequence[Row], curves: Mapping[str, Losses], *, environment: Mapping[str, str]) -> list[str]:
    """What a reader of the table must know: what the columns are, whether the losses agree, and the reasons."""
    return [*_meanings(rows, environment), *verdict(curves, precision=environment.get("precision")), *_reasons(rows)]


def verdict(curves: Mapping[str, Losses], *, precision: str | None) -> Iterator[str]:
    """How far the losses of the runs are apart, and in fp32 whether that is what it must be.

    Args:
        curves: losses by the name of the run; the first is compared to.
        precision: that of the runs.
    """
    if len(curves) < 2:
        return
    first, *others = curves
    steps = max(map(len, curves.values()))
    apart = _apart(curves, steps=None)
    yield f"losses of {len(others)} runs: at most {apart:.1e} from those of {first}, over {steps} steps"
    if precision == "fp32":
        early = _apart(curves, steps=BOUND_STEPS)
        agree = (
            "they are" if early < BOUND else "THEY ARE NOT (dropout, which differs between meshes, would explain it)"
        )
        wanted = f"in fp32 those of the first {min(steps, BOUND_STEPS)} steps must be within {BOUND:.0e}"
        yield f"{wanted}: {agree}, {early:.1e} apart"


_WORDS = ("engine", "mesh", "recomputed", "state")


def _apart(curves: Mapping[str, Losses], *, steps: int | None) -> float:
    first, *others = curves.values()
    found = (largest_difference(losses, first, steps=steps) for losses in others)
    return max((one for one in found if one is not None), default=float("nan"))


def _meanings(rows: Sequence[Row], environment: Mapping[str, str]) -> Iterator[str]:
    timed = {row.timed_steps for row in rows if row.timed_steps}
    if timed:
        yield f"time of a step and tokens/s: median of {max(timed)} steps, without the first {FIRST_STEPS} of a run"
    if environment.get("device") == "cpu":
        yield "memory of rank 0: planned are its tensors, measured is its whole process with all libraries (on a CPU)"
    elif environment:
        yield "memory of rank 0: planned and measured are its tensors at the peak"
    if any(row.sent_bytes for row in rows):
        yield "sent: bytes that a rank sends in a step, as planned; over dp includes what goes over all ranks"


def _reasons(rows: Sequence[Row]) -> Iterator[str]:
    """Each reason once, with the runs that have it."""
    names: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row.reason:
            names.setdefault((row.state, row.reason), []).append(row.name)
    for (state, reason), those in names.items():
        yield f"{', '.join(those)}{'' if state == 'finished' else f' {state}'}: {reason}"


def _mib(size: float | None, form: str = ".1f") -> str:
    return "" if size is None else format(size / MIB, form)


def _number(value: float | None, form: str, *, scale: float = 1) -> str:
    if value is None:
        return ""
    return format(value if scale == 1 else value * scale, form)
