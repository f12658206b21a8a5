"""What the benchmarks share: the training command, what a run wrote, the machine, tables and pictures."""

import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol, TypeVar

HERE = Path(__file__).parent
RESULTS = HERE / "results"
DOCS = HERE.parent / "docs"
WIKITEXT = HERE.parent.parent / "shared" / "data" / "wikitext2"
"""A folder with `train.txt`, a document a line; it may be absent."""

Measured = dict[str, Any]
"""What was measured, by name; JSON."""
_LEAVING_SECONDS = 300  # to finish a step, save and exit


class Verdict(Protocol):
    """What a sweep finds of one model type."""

    @property
    def family(self) -> str: ...
    @property
    def cells(self) -> Sequence[str]: ...


Row = TypeVar("Row", bound=Verdict)


def swept(judge: Callable[[str], Row], families: Sequence[str], *, processes: int) -> list[Row]:
    """What `judge` finds of each model type, by name; each is printed as soon as it is known.

    Args:
        judge: of a model type, in a process that judges many.
        families: model types; none: all that transformers maps to a causal language model.
        processes: that judge at a time.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    rows = []
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        for done in as_completed([pool.submit(judge, f) for f in families or MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]):
            rows.append(done.result())
            print("|", " | ".join(rows[-1].cells), "|", flush=True)
    return sorted(rows, key=lambda row: row.family)


def train_command(*options: str) -> list[str]:
    """The command that a user types, `tp2d train`, with these options."""
    return [sys.executable, "-m", "tp2d_train", "train", *options]


def run_logged(
    command: Sequence[str], *, environment: Mapping[str, str] | None = None, stop_after: float | None = None
) -> None:
    """Runs a command to its end, or interrupts it once and lets it save and exit.

    Args:
        command: the program and its arguments.
        environment: its environment; None: this process's.
        stop_after: seconds until the interrupt; None: there is none.

    Raises:
        SystemExit: the exit code is not that of success, or of an interrupt; with the end of what the command printed.
    """
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            process.wait(stop_after)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            process.wait(_LEAVING_SECONDS)
        finally:
            if process.poll() is None:  # this script was stopped, or the command does not end
                os.killpg(process.pid, signal.SIGKILL)
        if process.returncode != (0 if stop_after is None else 128 + signal.SIGINT):
            log.seek(0)
            raise SystemExit(f"{' '.join(command)}\nexit code {process.returncode}\n{log.read()[-6000:]}")


def read_lines(path: Path) -> list[Measured]:
    """The JSON lines of a file, without one that is not finished; none where there is no file."""
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def versions(*packages: str) -> dict[str, str]:
    """The versions of these packages."""
    return {name: version(name) for name in packages}


def machine(*packages: str) -> str:
    """What a measurement depends on: cores, the versions of Python and of these packages, how busy the machine is."""
    named = ", ".join(f"{name} {number}" for name, number in versions(*packages).items())
    load = f"load average {os.getloadavg()[0]:.1f} at the end"
    return f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, {named}, {load}"


def table(head: str, rows: Iterable[Sequence[object]]) -> list[str]:
    """The lines of a Markdown table; `head` has the names of its columns with ` | ` between them."""
    lines = [f"| {' | '.join(map(str, row))} |" for row in rows]
    return [f"| {head} |", "|---" * len(head.split(" | ")) + "|", *lines]


def write_result(path: Path, lines: Iterable[str]) -> None:
    """Writes a page of results, and prints it."""
    text = "\n".join(lines) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    print(f"{text}\nwritten: {path}")


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a picture.

    Args:
        label: its name in the legend.
        points: (x, y) from left to right.
        style: what matplotlib's `plot` takes: colour, width.
        dot: a point drawn as a dot, if any.
    """

    label: str
    points: Sequence[tuple[float, float]]
    style: Mapping[str, Any] = field(default_factory=dict)
    dot: tuple[float, float] | None = None


def draw(
    panels: Mapping[str, Sequence[Curve]], path: Path, *, x: str, y: str, size: tuple[float, float], font: float = 10
) -> None:
    """Draws the curves of each panel, the first at the bottom, and writes the picture.

    Args:
        panels: curves by the panel's title, from left to right; they share the y axis.
        path: where the picture goes.
        x: what the x axes show.
        y: what the y axis shows.
        size: of a panel, in inches.
        font: size of the titles, in points; the legend's is one less.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    width, height = size
    picture, axes = plt.subplots(
        1, len(panels), sharey=True, squeeze=False, figsize=(width * len(panels), height), dpi=150
    )
    for panel, (title, curves) in zip(axes[0], panels.items(), strict=True):
        for curve in curves:
            panel.plot(*zip(*curve.points, strict=True), label=curve.label, **curve.style)
            if curve.dot:
                panel.plot(*([value] for value in curve.dot), "o", color=curve.style["color"], markersize=5)
        panel.set_title(title, fontsize=font)
        panel.set_xlabel(x)
        panel.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel(y)
    axes[0][0].legend(frameon=False, fontsize=font - 1)
    picture.tight_layout()
    picture.savefig(path, metadata={"Software": None})
    plt.close(picture)
