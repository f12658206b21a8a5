"""The tables: speed and memory, time by class of work, how far the numbers are from the plain loop's, verdicts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from common import table
from tp2d_mesh.cost import flops_per_token
from tp2d_mesh.profile import CLASSES

from gpu.contenders import Contender
from gpu.machine import Machine
from gpu.measure import Figures
from gpu.rows import Counts
from gpu.shapes import Workload, model_config, parameter_total

PUBLISHED = (
    ("torchtitan", "Llama 3 8B, FSDP, selective recomputation", "8 x H100 (96 GB, 500 W)", "5,762 tok/s/GPU"),
    ("torchtitan", "the same, compiled", "8 x H100 (96 GB, 500 W)", "6,667 tok/s/GPU"),
    ("torchtitan", "the same, float8 (tensorwise)", "8 x H100 (96 GB, 500 W)", "8,532 tok/s/GPU"),
    ("NeMo Automodel", "Llama 3 8B, LoRA", "1 x H100", "12,473 tok/s/GPU, 402 TFLOP/s"),
)
"""What others have published for one GPU's share of an 8B model; another machine's figures are no comparison."""

TARGETS = {"titan": 1.0, "plain": 1.3}
"""What the best of ours is to reach against the best of a kind, in tokens per second."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """How far a loop's numbers may be from the plain loop's: loss and norm of the first step, loss of the last.

    In fp32 sums in another order differ by 1e-7 of a term, and Adam's steps, whose size hardly depends on the
    gradient's, let runs drift apart. In bf16 a rounding is 2^-9 of a value, and a mean over thousands of tokens
    averages most of it.
    """

    loss: float
    norm: float
    last: float


BOUNDS = {False: Bounds(loss=1e-5, norm=1e-4, last=1e-4), True: Bounds(loss=2**-8, norm=2**-5, last=2**-6)}
"""By whether a run computes in bf16."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One contender with what it did, or why it did not."""

    contender: Contender
    figures: Figures | str


@dataclass(frozen=True, kw_only=True)
class Result:
    """One workload with a row for each contender."""

    workload: Workload
    counts: Counts
    rows: list[Row]

    def failed(self) -> list[Row]:
        """The rows of contenders that have no figures."""
        return [row for row in self.rows if isinstance(row.figures, str)]

    def ran(self) -> list[tuple[Contender, Figures]]:
        """The contenders that have figures."""
        return [(row.contender, row.figures) for row in self.rows if isinstance(row.figures, Figures)]

    def best(self, kind: str) -> Figures | None:
        """The quickest of a kind; None where none ran."""
        found = [figures for contender, figures in self.ran() if contender.kind == kind]
        return min(found, key=lambda figures: figures.median_seconds, default=None)

    def reference(self) -> Figures | None:
        """The plain loop that the others' numbers are compared with."""
        return next((figures for contender, figures in self.ran() if contender.kind == "plain"), None)

    def flops(self) -> float:
        """Of a step: forward and backward, attention within each document, without recomputation."""
        config = model_config(self.workload.shape)
        total, attended = parameter_total(self.workload.shape), round(self.counts.attended)
        per_token = flops_per_token(config, parameters=total, seq_length=attended)
        assert per_token is not None  # every shape is dense
        return per_token * self.counts.positions


def workload_lines(result: Result, machine: Machine) -> Iterator[str]:
    """The tables of one workload."""
    counts = result.counts
    yield f"## {result.workload.name}"
    yield ""
    yield (
        f"{parameter_total(result.workload.shape):,} parameters; a step has {counts.positions:,.0f} positions, "
        f"{counts.labels:,.0f} labels and {result.flops() / 1e12:,.4g} TFLOP (attention over {counts.attended:,.0f} "
        f"tokens on average)."
    )
    yield ""
    yield from table(
        "loop | tok/s, positions | tok/s, labels | MFU, product | MFU, nominal | median ms | p90 ms | host ms | GiB "
        "| start s | x torchtitan's | x plain",
        [_speed(result, row, machine) for row in result.rows],
    )
    yield ""
    yield from table(
        f"loop, ms a step by class | {' | '.join(CLASSES)} | no kernel runs | kernels | waits | reads "
        "| attention kernels",
        [_profile(contender, figures) for contender, figures in result.ran()],
    )
    yield ""
    yield from table(
        "loop, against the plain loop | loss, first step | norm, first step | loss, last step | last loss",
        [_agreement(result, contender, figures) for contender, figures in result.ran()],
    )
    yield ""


def _speed(result: Result, row: Row, machine: Machine) -> list[object]:
    figures = row.figures
    if isinstance(figures, str):
        return [row.contender.name, figures, *[""] * 10]
    seconds, flops = figures.median_seconds, result.flops()
    nominal = machine.nominal_flops
    ratios = [_ratio(result.best(kind), figures) for kind in ("titan", "plain")]
    return [
        row.contender.name,
        f"{result.counts.positions / seconds:,.0f}",
        f"{result.counts.labels / seconds:,.0f}",
        f"{flops / seconds / machine.product_flops:.1%}",
        "" if nominal is None else f"{flops / seconds / nominal:.1%}",
        f"{seconds * 1e3:.1f}",
        f"{figures.p90_seconds * 1e3:.1f}",
        f"{figures.host_seconds * 1e3:.1f}",
        "" if figures.peak_bytes is None else f"{figures.peak_bytes / 2**30:.1f}",
        f"{figures.first_seconds:.0f}",
        *("" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
    ]


def _ratio(other: Figures | None, figures: Figures) -> float | None:
    return None if other is None else other.median_seconds / figures.median_seconds


def _profile(contender: Contender, figures: Figures) -> list[object]:
    found = figures.profile
    times = [f"{found.seconds[name] * 1e3:.1f}" for name in CLASSES]
    idle = f"{(found.span_seconds - found.busy_seconds) * 1e3:.1f}"
    counted = [f"{number:.0f}" for number in (found.kernels, found.waits, found.reads)]
    return [contender.name, *times, idle, *counted, ", ".join(found.attention) or "none known"]


def differences(reference: Figures, figures: Figures) -> Bounds:
    """How far a loop is from the plain one, relative."""
    return Bounds(
        loss=abs(figures.losses[0] / reference.losses[0] - 1),
        norm=abs(figures.norms[0] / reference.norms[0] - 1),
        last=abs(figures.losses[-1] / reference.losses[-1] - 1),
    )


def _agreement(result: Result, contender: Contender, figures: Figures) -> list[object]:
    reference = result.reference()
    last = f"{figures.losses[-1]:.4f}"
    if reference is None:
        return [contender.name, "", "", "", last]
    found = differences(reference, figures)
    return [contender.name, *(f"{value:.1e}" for value in (found.loss, found.norm, found.last)), last]


def failures(results: Sequence[Result], *, half: bool, judged: bool) -> list[str]:
    """What is not as it must be: numbers outside their bounds, and, where speed is judged, a target that is missed.

    Args:
        results: of every workload.
        half: whether they computed in bf16.
        judged: whether speed is judged, which a tiny model on a CPU does not tell.
    """
    found = [line for result in results for line in _wrong_numbers(result, BOUNDS[half])]
    return [*found, *(line for result in results if judged for line in _missed(result))]


def _wrong_numbers(result: Result, bounds: Bounds) -> Iterator[str]:
    reference = result.reference()
    if reference is None:
        return
    for contender, figures in result.ran():
        away = differences(reference, figures)
        for name, limit in vars(bounds).items():
            if not getattr(away, name) <= limit:
                value = getattr(away, name)
                yield f"{result.workload.name}: {contender.name}: {name} differs by {value:.1e}, bound {limit:.1e}"


def _missed(result: Result) -> Iterator[str]:
    ours = result.best("ours")
    for kind, target in TARGETS.items():
        ratio = None if ours is None else _ratio(result.best(kind), ours)
        if ratio is not None and ratio < target:
            yield f"{result.workload.name}: the best of tp2d is {ratio:.2f} x the best {kind} loop, target {target:.2f}"


def as_json(result: Result) -> dict[str, Any]:
    """A workload's figures as JSON."""
    rows = [{"contender": vars(row.contender), **_outcome(row.figures)} for row in result.rows]
    return {"workload": vars(result.workload), "counts": vars(result.counts), "rows": rows}


def _outcome(figures: Figures | str) -> dict[str, Any]:
    return {"failed": figures} if isinstance(figures, str) else {"figures": figures.as_json()}
