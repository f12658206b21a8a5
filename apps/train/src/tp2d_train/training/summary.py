"""What a run says of itself at its start and at its end."""

import platform
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from tp2d_data import Statistics
from tp2d_mesh.devices import peak_memory

from tp2d_train.config import TrainConfig
from tp2d_train.fields import text_of
from tp2d_train.report.meter import Clock, Meter
from tp2d_train.report.metrics import perplexity
from tp2d_train.report.record import Record
from tp2d_train.setup.build import Parts
from tp2d_train.training.state import RunState

PACKAGES = ("torch", "transformers", "ray", "tp2d-train", "tp2d-mesh", "tp2d-data", "tp2d-ckpt")
STATE_METRICS = (
    *("step", "epoch", "total_steps", "tokens", "positions"),
    *("mean_loss", "best_loss", "eval_loss", "best_eval_loss"),
)


def announce(config: TrainConfig, parts: Parts, run: RunState, record: Record, *, resumed: str | None) -> None:
    """Writes the events of a start, drops the metrics of steps to come, and marks the run as not finished."""
    place = {"step": run.step, "epoch": run.epoch, "total_steps": run.total_steps}
    record.resume(step=run.step)
    record.summary({"finished": False, **place, **_identity(config, parts)})
    record.event("started", **place, **_identity(config, parts), places=parts.places)
    if message := describe_data(parts.loader.statistics, config):
        record.event("data", message=message)
    for message in parts.warnings:
        record.event("warning", **place, message=message)
    if resumed is not None:
        record.event("resumed", **place, checkpoint=resumed)


def describe_data(statistics: Statistics | None, config: TrainConfig) -> str:
    """What became of the documents, in one line: nothing that is left out is left out silently.

    Args:
        statistics: of the training data; None for a stream, which nobody has counted.
        config: `seq_length` and `dataset_percentage` are read.
    """
    known = [] if statistics is None else [_describe_rows(statistics, seq_length=config.seq_length)]
    return "; ".join(known + _describe_percentage(statistics, config.dataset_percentage))


def _describe_rows(statistics: Statistics, *, seq_length: int) -> str:
    filled = statistics.tokens / max(1, statistics.rows * seq_length)
    losses = [f"{count:,} left out ({reason})" for reason, count in statistics.dropped.items()]
    losses += [f"{statistics.cut_tokens:,} tokens cut off"] if statistics.cut_tokens else []
    rows = f"{statistics.rows:,} rows of {seq_length} tokens, {filled:.1%} filled"
    return f"{rows}, of {statistics.documents:,} documents{''.join(f', {loss}' for loss in losses)}"


def _describe_percentage(statistics: Statistics | None, percentage: float) -> list[str]:
    if percentage == 100:
        return []
    available = None if statistics is None else statistics.available
    count = "" if available is None else f"{available:,} "
    return [f"dataset_percentage {percentage:g} leaves out {100 - percentage:g}% of the {count}documents"]


def summarise(
    config: TrainConfig, parts: Parts, run: RunState, *, clock: Clock, meter: Meter, finished: bool
) -> dict[str, Any]:
    """The contents of `summary.json`: what trained, how far and how well, how long and how fast.

    `tokens_per_second`, `label_tokens_per_second`, `step_seconds` and `mfu` are of this start's steps but the first.
    What is not known is absent.
    """
    state = run.as_dict()
    memory = peak_memory(parts.mesh.device)
    values = {
        "finished": finished,
        **_identity(config, parts),
        **{name: state[name] for name in STATE_METRICS},
        "final_loss": state["last_loss"],
        "eval_perplexity": None if run.eval_loss is None else perplexity(run.eval_loss),
        "skipped_steps": run.health.skipped,
        "num_epochs": config.num_epochs,
        "max_steps": config.max_steps,
        **meter.overall(step=run.step, tokens=state["tokens"], positions=state["positions"]),
        "memory_bytes": memory,
        "data": None if parts.loader.statistics is None else _known(asdict(parts.loader.statistics)),
        "seconds": dict(clock.seconds),
        "versions": _versions(config.engine),
    }
    return _known(values)


def conclude(config: TrainConfig, summary: dict[str, Any], record: Record) -> None:
    """Writes `summary.json`, `loss.png` and the last event."""
    name = f"{config.name} · " if config.name else ""
    record.summary(summary)
    what = f"{config.model_name} on {text_of(config.dataset_name)}"
    record.plot(title=f"{name}{what} · {config.engine} {summary['mesh']}")
    seconds = sum(summary["seconds"].values())
    place = {key: summary[key] for key in ("step", "epoch", "total_steps", "tokens")}
    record.event("finished" if summary["finished"] else "stopped", **place, seconds=seconds)


def _known(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _versions(engine: str) -> dict[str, str]:
    return {"python": platform.python_version(), **{name: version(name) for name in (*PACKAGES, f"tp2d-{engine}")}}


def _identity(config: TrainConfig, parts: Parts) -> dict[str, Any]:
    return {
        "engine": config.engine,
        "mesh": str(parts.mesh.layout),
        "device": parts.mesh.device.type,
        "precision": parts.precision.name,
        "model_name": config.model_name,
        "dataset_name": text_of(config.dataset_name),
        "parameters": parts.engine.parameter_count,
    }
