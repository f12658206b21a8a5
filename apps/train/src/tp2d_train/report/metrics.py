"""The files of a run's numbers: `metrics.jsonl`, a line for each logged step and evaluation, and `summary.json`.

A line of a step holds step, epoch, loss, grad_norm, lr, tokens, positions, tokens_per_second, label_tokens_per_second,
step_seconds, memory_bytes, and mfu where the device's peak is known; a line of an evaluation holds step, epoch,
eval_loss, eval_tokens, eval_perplexity. Both end with `time`, when they were written, in seconds since 1970.

`step` counts completed optimizer steps, `epoch` from 0 as in the tutorials, `tokens` the predicted tokens so far,
`positions` all that were computed, labelled or not, each once per dp rank. `tokens_per_second` counts positions,
`label_tokens_per_second` predicted tokens. A number that is not finite is written as null: NaN is not JSON.
"""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tp2d_train.runs.folder import replace_file


def read_lines(path: Path, *, start: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The records of a JSON-lines file from byte `start` on, and the byte to go on from.

    A missing file has no records. A last line without its line feed is still being written and is left for the next
    call. A whole line that is not a JSON object was cut off by a kill, and is skipped.
    """
    if not path.exists():
        return [], start
    with path.open("rb") as file:
        file.seek(start)
        whole = file.read().rpartition(b"\n")[0]
    records = [record for line in whole.split(b"\n") if (record := _record(line)) is not None]
    return records, start + len(whole) + 1 if whole else start


def append_line(path: Path, record: Mapping[str, Any]) -> None:
    """Appends one record in one write, so that lines of several processes do not mix; a cut-off line is ended first."""
    with path.open("ab+") as file:
        lead = b""
        if file.tell():
            file.seek(-1, os.SEEK_END)
            lead = b"" if file.read() == b"\n" else b"\n"
        file.write(lead + _encode(record))


def cut_back(path: Path, *, step: int) -> int:
    """Drops the lines after `step`, which a resumed run will write again; returns how many it dropped.

    The file is replaced in one move: a kill leaves the old one or the new one.
    """
    records, _ = read_lines(path)
    kept = [record for record in records if record["step"] <= step]
    if path.exists():
        replace_file(path, b"".join(map(_encode, kept)))
    return len(records) - len(kept)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes an indented JSON file, replacing an older one in one move."""
    replace_file(path, json.dumps(_finite(value), indent=2, allow_nan=False).encode() + b"\n")


def evaluation_metrics(*, loss: float, tokens: int) -> dict[str, Any]:
    """The metrics of an evaluation by name. `eval_perplexity`, exp(loss), is absent where it is not a finite number.

    Args:
        loss: mean over the held-out tokens, in nats.
        tokens: how many there were.
    """
    metrics = {"eval_loss": loss, "eval_tokens": tokens}
    found = perplexity(loss)
    return metrics if found is None else {**metrics, "eval_perplexity": found}


def perplexity(loss: float) -> float | None:
    """exp(loss) of a mean loss in nats; None where that is not a finite number."""
    try:
        found = math.exp(loss)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def column(records: Iterable[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """The steps and values of one metric, where a line has it."""
    points = [(record["step"], record[name]) for record in records if record.get(name) is not None]
    return [step for step, _ in points], [value for _, value in points]


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def _encode(record: Mapping[str, Any]) -> bytes:
    return json.dumps(_finite(record), allow_nan=False).encode() + b"\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
