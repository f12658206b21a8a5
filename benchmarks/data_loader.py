"""How fast packed rows come out of the loader, and how fast a training step takes them.

    python benchmarks/data_loader.py                    # about 5 minutes on two cores
    python benchmarks/data_loader.py --device cuda --precision bf16

One rank of `create_dataloader` over synthetic prose, tokenised beforehand, against one optimizer step of each built-in
model with the engine fsdp2 on 1x1, in the same process. Loader alone and step take turns, and the medians are compared.
The step is fed by a loader too, and what it waits for a batch is measured. Exits with 1 if the loader is less than 20
times as fast as a step.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import torch
from prose import machine, write_prose
from tp2d_data import Loader, create_dataloader
from tp2d_fsdp2 import FSDP2Engine
from tp2d_mesh import Layout, build_mesh
from tp2d_train.models import BUILTIN_SIZES, builtin_config

RESULT = Path(__file__).parent / "results" / "data_loader.md"
BATCHES = {512: 8, 2048: 2}  # seq_length -> rows of a batch: equally many tokens
BOUND = 20.0
STEPS, LOADER_SECONDS = 2, 1.0  # of a turn
PACKAGES = ("torch", "transformers", "numpy")
Figures = dict[str, Any]


def main() -> int:
    """Measures every model and length, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=32, help="of text, 2**20 bytes each")
    parser.add_argument("--models", nargs="+", choices=sorted(BUILTIN_SIZES), default=list(BUILTIN_SIZES))
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32", help="fp32, bf16, bf16-pure or fp16")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with tempfile.TemporaryDirectory(prefix="data-loader-") as folder:
        write_prose(Path(folder) / "corpus.txt", megabytes=options.megabytes)
        cases = [(size, seq_length) for size in options.models for seq_length in BATCHES]
        measured = [measure(size, seq_length, Path(folder), options) for size, seq_length in cases]
    table = report(measured, options)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(table, encoding="utf-8")
    print(f"{table}\nwritten: {options.output}")
    return 0 if all(figures["ratio"] >= BOUND for figures in measured) else 1


def measure(size: str, seq_length: int, folder: Path, options: argparse.Namespace) -> Figures:
    """Rows per second of the loader, with and without work done ahead, and of the step; the medians of all turns."""
    device, rows = torch.device(options.device), BATCHES[seq_length]
    load = partial(open_loader, folder, seq_length, device)
    mesh = build_mesh(Layout(dp=1, tp=1), device=device)
    engine = FSDP2Engine(config=builtin_config(size), weights=None, mesh=mesh, precision=options.precision)
    batches = endless(load(num_workers=1))
    steps(engine, batches, 1)  # the first one is slower than all others
    turns: list[Figures] = []
    for _ in range(options.turns):
        seconds, waited = steps(engine, batches, STEPS)
        speeds = {f"workers_{n}": loader_speed(load(num_workers=n)) * rows for n in (1, 0)}
        turns.append({**speeds, "step": rows * STEPS / seconds, "waited": waited / STEPS})
    engine.close()
    mesh.close()
    figures = {name: median(turn[name] for turn in turns) for name in turns[0]}
    figures |= {"size": size, "seq_length": seq_length, "rows": rows, "ratio": figures["workers_1"] / figures["step"]}
    print(f"{time.strftime('%H:%M:%S')} {figures}", flush=True)
    return figures


def open_loader(folder: Path, seq_length: int, device: torch.device, *, num_workers: int) -> Loader:
    """One dp rank's loader over the corpus; after the first call it takes its tokens from the cache."""
    return create_dataloader(
        "builtin:tiny",
        str(folder / "corpus.txt"),
        seq_length,
        BATCHES[seq_length],
        0,
        1,
        dataset_percentage=100,
        num_workers=num_workers,
        device=device if device.type != "cpu" else None,
        cache_dir=folder / "cache",
    )


def endless(loader: Loader) -> Iterator[Any]:
    """The batches of one epoch after the other."""
    for epoch in count():
        loader.sampler.set_epoch(epoch)
        yield from loader


def loader_speed(loader: Loader) -> float:
    """Batches per second of a loader that nothing but itself keeps busy, behind its first batch."""
    batches = endless(loader)
    next(batches)
    begin = time.perf_counter()
    for taken in count(1):
        next(batches)
        if (seconds := time.perf_counter() - begin) >= LOADER_SECONDS:
            return taken / seconds
    raise AssertionError("unreachable")


def steps(engine: FSDP2Engine, batches: Iterator[Any], number: int) -> tuple[float, float]:
    """Seconds of so many optimizer steps without the waiting, and seconds waited for their batches."""
    waited = spent = 0.0
    for _ in range(number):
        begin = time.perf_counter()
        batch = next(batches)
        arrived = time.perf_counter()
        engine.train_step([batch]).loss.item()  # waits for the device
        waited, spent = waited + arrived - begin, spent + time.perf_counter() - arrived
    return spent, waited


def report(measured: list[Figures], options: argparse.Namespace) -> str:
    """The table."""
    where = options.device if options.device == "cpu" else torch.cuda.get_device_name()
    head = "| model | seq_length | rows a batch | loader, rows/s | without work ahead, rows/s | a step, rows/s"
    lines = [
        "# The loader against a training step",
        "",
        f"`{shlex.join(['python', 'benchmarks/data_loader.py', *sys.argv[1:]])}`, {options.precision},",
        f"{where}, {machine(*PACKAGES)}.",
        f"Packed rows (best_fit), engine fsdp2 on 1x1, medians of {options.turns} turns. Bound: a ratio of {BOUND:g}.",
        "",
        f"{head} | ratio | a step waits, ms |",
        "|---" * 8 + "|",
    ]
    for figures in measured:
        what = [f"builtin:{figures['size']}", figures["seq_length"], figures["rows"]]
        speeds = [f"{figures['workers_1']:,.0f}", f"{figures['workers_0']:,.0f}", f"{figures['step']:.2f}"]
        waits = f"{figures['waited'] * 1e3:.2f}"
        verdict = f"{figures['ratio']:,.0f} ({'kept' if figures['ratio'] >= BOUND else 'missed'})"
        lines.append(f"| {' | '.join(map(str, [*what, *speeds, verdict, waits]))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
