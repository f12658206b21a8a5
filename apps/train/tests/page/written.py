"""Folders of runs, written by the program's own writers, without a worker."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from tp2d_train.page.facts import Facts, read_facts
from tp2d_train.report.record import Record
from tp2d_train.runs.run import Run
from tp2d_train.training.summary import PACKAGES

from apps.train.tests.named import save, started

PLACES = "dp 0: rank 0 on a, rank 1 on a\ndp 1: rank 2 on b, rank 3 on b"
IDENTITY = {
    "engine": "fsdp2",
    "mesh": "2x2 (dp x tp)",
    "device": "cpu",
    "precision": "fp32",
    "model_name": "builtin:tiny",
    "dataset_name": "builtin:stdlib",
    "parameters": 1312896,
}
SUMMARY = {
    "finished": True,
    **IDENTITY,
    "step": 40,
    "epoch": 1,
    "total_steps": 40,
    "tokens": 40000,
    "best_loss": 5.5,
    "final_loss": 5.75,
    "eval_loss": 6.25,
    "tokens_per_second": 4057.1,
    "step_seconds": 0.2458,
    "skipped_steps": 1,
    "data": {"documents": 4104, "dropped": {"empty": 3}, "rows": 4043, "tokens": 258604, "cut_tokens": 0},
    "seconds": {"setup": 3.0, "train": 60.0, "eval": 1.0, "save": 2.0},
    "versions": {"python": "3.11.7", **dict.fromkeys(PACKAGES, "0.1.0")},
}


def new_run(storage: Path, name: str = "a", **settings: Any) -> tuple[Run, Record]:
    """A run whose driver has started, and its record."""
    run = started(storage, name=name, **settings)
    return run, Record(run.folder, active=True)


def start(record: Record, *, step: int = 0, resumed: str | None = None, **changes: Any) -> None:
    """What a worker writes at its start."""
    place = {"step": step, "epoch": 0, "total_steps": 40}
    record.resume(step=step)
    record.event("started", **place, **IDENTITY | {"places": PLACES} | changes)
    if resumed is not None:
        record.event("resumed", **place, checkpoint=resumed)


def steps(record: Record, first: int, last: int, **changes: Any) -> None:
    """The lines and events of steps, each logged."""
    for step in range(first, last + 1):
        line = {"step": step, "epoch": 0, "loss": 8.0 - step / 20, "grad_norm": 1.0, "lr": 1e-3 * step}
        speed = {"tokens_per_second": 4000.0 + step, "label_tokens_per_second": 3900.0, "step_seconds": 0.2}
        line |= {"tokens": 1000 * step, "positions": 1024 * step, "memory_bytes": 3 * 2**29} | speed | changes
        record.metrics(line)
        record.event("step", **line, total_steps=40, eta_seconds=1.0)


def killed_and_resumed(storage: Path, name: str = "a", **settings: Any) -> Run:
    """A run that was killed after step 17, went on from step 10, and finished."""
    run, record = new_run(storage, name, **settings)
    start(record)
    steps(record, 1, 10)
    save(run)
    record.event("saved", step=10, epoch=0, total_steps=40, checkpoint="step-00000010-aa", seconds=0.5)
    steps(record, 11, 17)
    start(record, step=10, resumed="step-00000010-aa")
    steps(record, 11, 20)
    record.event("skipped", step=20, epoch=0, total_steps=40, message="step 20 was skipped: not finite")
    record.metrics({"step": 20, "epoch": 0, "eval_loss": 6.5, "eval_tokens": 800})
    steps(record, 21, 40)
    record.summary(SUMMARY)
    record.event("finished", step=40, epoch=1, total_steps=40, tokens=40000, seconds=66.0)
    return run


def facts(run: Run, state: str = "finished") -> Facts:
    return read_facts(run.folder, state=state)


class Page(HTMLParser):
    """A parsed page: its text, what it would fetch, and whether every element is closed."""

    VOID = ("meta", "wbr", "link", "br", "img", "hr", "input")

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        self.pictures = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text += data

    def ids(self) -> list[str]:
        return [attrs["id"] or "" for _, attrs in self.elements if "id" in attrs]
