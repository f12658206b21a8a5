"""The kinds of a run's events: how important each is, and what it says to a person.

An event is a flat record: its kind under `event`, when it was written under `time`, and its values. Those that happen
at a step have `step`, and mostly `epoch` and `total_steps` too.
"""

from collections.abc import Mapping
from typing import Any

from tp2d_train.config import LOG_LEVELS

LEVELS = {
    "phase": "info",  # what the start is doing now
    "data": "info",
    "started": "info",
    "resumed": "info",
    "prolonged": "info",
    "step": "info",
    "evaluated": "info",
    "saved": "info",
    "epoch": "info",
    "warning": "warning",
    "skipped": "warning",  # a step that was not applied
    "spike": "warning",  # of the loss
    "stopped": "warning",  # how a run ended is said wherever its warnings are
    "finished": "warning",
    "failed": "error",
}
PROGRESS = ("phase", "step")  # what a bar shows at the bottom and a quiet view leaves out


def describe(event: Mapping[str, Any], *, log_level: str = "info") -> str | None:
    """An event as text for people, one line but for a start's table of places and a traceback.

    Args:
        event: the event.
        log_level: the least important level to show; `debug` adds a failure's traceback.

    Returns:
        The text; None for a kind that is less important, or unknown, as a driver may be older than its workers.
    """
    level = LEVELS.get(event["event"])
    if level is None or LOG_LEVELS.index(level) < LOG_LEVELS.index(log_level):
        return None
    text = _place(event) + _text(event)
    return f"{text}\n{event['traceback']}" if log_level == "debug" and "traceback" in event else text


def _place(event: Mapping[str, Any]) -> str:
    if event["event"] in ("phase", "started") or "step" not in event:
        return ""
    return f"step {event['step']}/{event['total_steps']}  " if "total_steps" in event else f"step {event['step']}  "


def _text(event: Mapping[str, Any]) -> str:
    match event["event"]:
        case "started":
            return _start(event)
        case "phase" | "data":
            return str(event["message"])
        case "step":
            return describe_step(event)
        case "evaluated":
            return _evaluation(event)
        case "saved":
            return f"saved {event['checkpoint']} in {event['seconds']:.1f} s"
        case "epoch":
            return f"epoch {event['epoch'] + 1}/{event['num_epochs']} ended, mean loss {_number(event['loss'])}"
        case "resumed":
            return f"resumed from {event['checkpoint']}"
        case "prolonged":
            return f"the schedule now ends at step {event['total_steps']}, it ended at {event['before']}"
        case "warning" | "skipped" | "spike":
            return f"warning: {event['message']}"
        case "stopped":
            return "stopped as asked; the next start with this name resumes here"
        case "finished":
            return f"finished in {_clock(event['seconds'])}, {event['tokens']:,} tokens"
    return f"rank {event['rank']} on {event['host']} failed: {event['error']}: {event['message']}"


def describe_step(event: Mapping[str, Any]) -> str:
    """The metrics of a `step` event. The rate of labels is shown where the loss leaves out more than a few tokens."""
    parts = [f"loss {_number(event['loss'])}", f"grad {_number(event['grad_norm'], 3)}", f"lr {event['lr']:.1e}"]
    if "tokens_per_second" in event:
        rate, labels = event["tokens_per_second"], event["label_tokens_per_second"]
        parts.append(f"{rate:,.0f} tok/s" + (f" ({labels:,.0f} labels/s)" if labels < 0.9 * rate else ""))
    return "  ".join([*parts, f"ETA {_clock(event['eta_seconds'])}"])


def _start(event: Mapping[str, Any]) -> str:
    what = f"{event['engine']} on {event['mesh']}, {event['device']}, {event['precision']}"
    steps = event["total_steps"] - event["step"]
    return f"{event['places']}\n{what}: {event['parameters']:,} parameters, {steps:,} steps to go"


def _evaluation(event: Mapping[str, Any]) -> str:
    loss, perplexity = f"eval loss {_number(event['eval_loss'])}", event.get("eval_perplexity")
    if perplexity is not None:
        loss += f" (perplexity {perplexity:,.1f})" if perplexity < 1e6 else f" (perplexity {perplexity:.1e})"
    return f"{loss} over {event['eval_tokens']:,} tokens"


def _number(value: float | None, digits: int = 4) -> str:
    return "not finite" if value is None else f"{value:#.{digits}g}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
