"""The figures of runs: how far, how well, how fast, on what; and where their time went. What is not known is absent."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tp2d_train.page.facts import Facts
from tp2d_train.report.metrics import column, perplexity

PHASES = {"setup": "set-up", "train": "training", "eval": "evaluation", "save": "saving"}


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure of every run.

    Args:
        label: what it is.
        values: in the order of the runs; None: not known.
    """

    label: str
    values: Sequence[str | None]


@dataclass(frozen=True, kw_only=True)
class Share:
    """What a phase took of a run's time.

    Args:
        phase: its name.
        kind: its key in `summary.json`.
        text: the time.
        percent: of the longest run's time on the page.
    """

    phase: str
    kind: str
    text: str
    percent: float


def results(runs: Sequence[Facts]) -> list[Figure]:
    """How far each run is, how good and how fast; figures that no run has are left out."""
    return _table(_RESULTS, runs)


def identities(runs: Sequence[Facts]) -> list[Figure]:
    """What ran, on what."""
    return _table(_IDENTITY, runs)


def documents(runs: Sequence[Facts]) -> list[Figure]:
    """What became of the documents, where the runs' summaries have it."""
    return _table(_DOCUMENTS, runs)


def versions(runs: Sequence[Facts]) -> list[Figure]:
    """Of Python and the packages that trained."""
    every = [run.summary.get("versions") or {} for run in runs]
    names = dict.fromkeys(name for found in every for name in found)
    return [Figure(label=name, values=[found.get(name) for found in every]) for name in names]


def shares(run: Facts, *, longest: float) -> list[Share]:
    """A run's time by phase; empty where it has not ended and so has not said.

    Args:
        run: the run.
        longest: the most seconds that a run on the page took.
    """
    seconds = run.summary.get("seconds") or {}
    return [
        Share(phase=PHASES.get(kind, kind), kind=kind, text=clock(value), percent=100 * value / longest)
        for kind, value in seconds.items()
        if longest
    ]


def total_seconds(run: Facts) -> float:
    """All phases together; 0 where they are not known."""
    return float(sum((run.summary.get("seconds") or {}).values()))


def clock(seconds: float) -> str:
    """A duration, e.g. `0.42 s`, `12.3 s`, `3:07 min`, `2:05:09 h`."""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"


def clock_time(seconds: float) -> str:
    """When it was, in this machine's time."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def size(count: float) -> str:
    """Bytes, e.g. `15.1 MiB`."""
    unit, name = next(((unit, name) for unit, name in _UNITS if count >= unit), (1, "bytes"))
    return f"{count / unit:.1f} {name}" if unit > 1 else f"{count:,.0f} bytes"


_UNITS = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def _table(rows: dict[str, Callable[[Facts], str | None]], runs: Sequence[Facts]) -> list[Figure]:
    figures = [Figure(label=label, values=[value(run) for run in runs]) for label, value in rows.items()]
    return [figure for figure in figures if any(value is not None for value in figure.values)]


def _of_summary(name: str, form: Callable[[Any], str]) -> Callable[[Facts], str | None]:
    def value(run: Facts) -> str | None:
        found = run.summary.get(name)
        return None if found is None else form(found)

    return value


def _of_lines(name: str, metric: str, form: Callable[[Any], str]) -> Callable[[Facts], str | None]:
    """A figure of the summary; of a run that has not ended that of the last line which has it."""

    def value(run: Facts) -> str | None:
        last = column([*run.steps, *run.evaluations], metric)[1][-1:]
        found = run.summary.get(name, last[0] if last else None)
        return None if found is None else form(found)

    return value


def _step(run: Facts) -> str | None:
    known = [run.summary.get("step", 0), *(line["step"] for line in (*run.steps[-1:], *run.evaluations[-1:]))]
    told = [start.last_step for start in run.starts[-1:]]
    total = run.summary.get("total_steps") or (run.starts[-1].values.get("total_steps") if run.starts else None)
    return f"{max(known + told):,} of {total:,}" if total else None


def _perplexity(run: Facts) -> str | None:
    evaluated = column(run.evaluations, "eval_loss")[1][-1:]
    found = run.summary.get("eval_perplexity", perplexity(evaluated[0]) if evaluated else None)
    return None if found is None else f"{found:,.1f}" if found < 1e6 else f"{found:.1e}"


def _starts(run: Facts) -> str | None:
    return str(len(run.starts)) if run.starts else None


def _lost(run: Facts) -> str | None:
    lost = sum(start.lost for start in run.starts)
    return f"at least {lost}" if lost else None


def _time(run: Facts) -> str | None:
    return clock(total_seconds(run)) if total_seconds(run) else None


def _dropped(run: Facts) -> str | None:
    dropped = (run.summary.get("data") or {}).get("dropped") or {}
    return ", ".join(f"{count:,} ({reason})" for reason, count in dropped.items()) or None


def _filled(run: Facts) -> str | None:
    data = run.summary.get("data") or {}
    if run.config is None or not data.get("rows"):
        return None
    return f"{data['tokens'] / (data['rows'] * run.config.seq_length):.1%}"


def _of_data(name: str) -> Callable[[Facts], str | None]:
    def value(run: Facts) -> str | None:
        found = (run.summary.get("data") or {}).get(name)
        return None if found is None else f"{found:,}"

    return value


def _of_config(name: str) -> Callable[[Facts], str | None]:
    return lambda run: None if run.config is None else str(getattr(run.config, name))


def _of_identity(name: str, form: Callable[[Any], str] = str) -> Callable[[Facts], str | None]:
    return lambda run: None if name not in run.identity else form(run.identity[name])


def _loss(value: float) -> str:
    return f"{value:#.4g}"


def _whole(value: float) -> str:
    return f"{value:,.0f}"


_RESULTS: dict[str, Callable[[Facts], str | None]] = {
    "State": lambda run: run.state,
    "Step": _step,
    "Training loss, last": _of_lines("final_loss", "loss", _loss),
    "Training loss, best": _of_summary("best_loss", _loss),
    "Evaluation loss, last": _of_lines("eval_loss", "eval_loss", _loss),
    "Evaluation loss, best": _of_summary("best_eval_loss", _loss),
    "Perplexity": _perplexity,
    "Tokens in the loss": _of_lines("tokens", "tokens", _whole),
    "Tokens per second": _of_summary("tokens_per_second", _whole),
    "Seconds per step": _of_summary("step_seconds", "{:.3g}".format),
    "Share of the peak (MFU)": _of_summary("mfu", "{:.1%}".format),
    "Peak memory of rank 0": _of_lines("memory_bytes", "memory_bytes", size),
    "Time": _time,
    "Starts": _starts,
    "Steps computed again": _lost,
    "Skipped steps": _of_summary("skipped_steps", _whole),
}
_IDENTITY: dict[str, Callable[[Facts], str | None]] = {
    "Model": _of_identity("model_name"),
    "Parameters": _of_identity("parameters", _whole),
    "Data": _of_identity("dataset_name"),
    "Engine": _of_identity("engine"),
    "Mesh": _of_identity("mesh"),
    "Precision": _of_identity("precision"),
    "Device": _of_identity("device"),
}
_DOCUMENTS: dict[str, Callable[[Facts], str | None]] = {
    "Packing": _of_config("packing"),
    "Tokens in a row": _of_config("seq_length"),
    "Documents": _of_data("documents"),
    "Documents in the data": _of_data("available"),
    "Documents left out": _dropped,
    "Rows": _of_data("rows"),
    "Tokens in rows": _of_data("tokens"),
    "Tokens cut off": _of_data("cut_tokens"),
    "Padding": _of_data("padded_tokens"),
    "Rows filled": _filled,
}
