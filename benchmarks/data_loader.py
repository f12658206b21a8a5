"""How fast packed rows come out of the loader, and how fast a training step takes them.

    python benchmarks/data_loader.py                    # about 5 minutes on two cores
    python benchmarks/data_loader.py --megabytes 2 --turns 1 --models tiny --output /tmp/data_loader.md   # 1 minute
    python benchmarks/data_loader.py --device cuda --precision bf16

One rank of `create_dataloader` over synthetic prose, tokenised beforehand, against one optimizer step of each built-in
model with the engine fsdp2 on 1x1, in the same process. The loader alone and the step take turns, and the medians are
compared. The step is fed by a loader too, and how long it waits for a batch is measured. Exits with 1 if the loader is
less than 20 times as fast as a step.
"""

import argparse
import logging
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import RESULTS, Measured, machine, table, write_result
from prose import write_prose
from tp2d_data import Loader, create_dataloader
from tp2d_fsdp2 import FSDP2Engine
from tp2d_mesh import PRECISIONS, EngineSpec, Layout, build_mesh
from tp2d_train.setup.model import BUILTIN_SIZES, builtin_config

BATCHES = {512: 8, 2048: 2}  # seq_length -> rows of a batch: equally many tokens
BOUND = 20.0
STEPS, LOADER_SECONDS = 2, 1.0  # of a turn


def main() -> int:
    """Measures every model and length, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=32, help="of text, 2**20 bytes each")
    parser.add_argument("--models", nargs="+", choices=sorted(BUILTIN_SIZES), default=list(BUILTIN_SIZES))
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="fp32", choices=("auto", *PRECISIONS))
    parser.add_argument("--output", type=Path, default=RESULTS / "data_loader.md")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with tempfile.TemporaryDirectory(prefix="data-loader-") as folder:
        write_prose(Path(folder) / "corpus.txt", megabytes=options.megabytes)
        cases = [(size, seq_length) for size in options.models for seq_length in BATCHES]
        measured = [measure(size, seq_length, Path(folder), options) for size, seq_length in cases]
    write_result(options.output, report(measured, options))
    return 0 if all(one["ratio"] >= BOUND for one in measured) else 1


def measure(size: str, seq_length: int, folder: Path, options: argparse.Namespace) -> Measured:
    """Rows per second of the loader, with and without work done ahead, and of the step; the medians of all turns."""
    device, rows = torch.device(options.device), BATCHES[seq_length]
    mesh = build_mesh(Layout(dp=1, tp=1), device=device)
    spec = EngineSpec(precision=options.precision)
    engine = FSDP2Engine(spec, config=builtin_config(size), weights=None, mesh=mesh)

    def load(num_workers: int) -> Loader:
        return open_loader(folder, seq_length, device, num_workers=num_workers)

    batches = endless(load(1))
    steps(engine, batches, 1)  # the first one is slower than all others
    turns: list[Measured] = []
    for _ in range(options.turns):
        seconds, waited = steps(engine, batches, STEPS)
        speeds = {f"workers_{n}": loader_speed(load(n)) * rows for n in (1, 0)}
        turns.append({**speeds, "step": rows * STEPS / seconds, "waited": waited / STEPS})
    engine.close()
    mesh.close()
    measured: Measured = {name: median(turn[name] for turn in turns) for name in turns[0]}
    ratio = measured["workers_1"] / measured["step"]
    measured |= {"size": size, "seq_length": seq_length, "rows": rows, "ratio": ratio}
    print(f"{time.strftime('%H:%M:%S')} {measured}", flush=True)
    return measured


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
    """Batches per second of a loader while nothing else runs, after its first batch."""
    batches = endless(loader)
    next(batches)
    begin = time.perf_counter()
    for taken in count(1):
        next(batches)
        if (seconds := time.perf_counter() - begin) >= LOADER_SECONDS:
            return taken / seconds
    raise AssertionError("unreachable")


def steps(engine: FSDP2Engine, batches: Iterator[Any], number: int) -> tuple[float, float]:
    """Seconds that so many optimizer steps took without waiting, and seconds that they waited for their batches."""
    waited = spent = 0.0
    for _ in range(number):
        begin = time.perf_counter()
        batch = next(batches)
        arrived = time.perf_counter()
        engine.train_step([batch]).loss.item()  # waits for the device
        waited, spent = waited + arrived - begin, spent + time.perf_counter() - arrived
    return spent, waited


def report(measured: list[Measured], options: argparse.Namespace) -> list[str]:
    """The page of results."""
    where = options.device if options.device == "cpu" else torch.cuda.get_device_name()
    head = "model | seq_length | rows a batch | loader, rows/s | without work ahead, rows/s | a step, rows/s"
    rows = []
    for one in measured:
        what = [f"builtin:{one['size']}", one["seq_length"], one["rows"]]
        speeds = [f"{one['workers_1']:,.0f}", f"{one['workers_0']:,.0f}", f"{one['step']:.2f}"]
        verdict = f"{one['ratio']:,.0f} ({'kept' if one['ratio'] >= BOUND else 'missed'})"
        rows.append([*what, *speeds, verdict, f"{one['waited'] * 1e3:.2f}"])
    return [
        "# The loader against a training step",
        "",
        f"`{shlex.join(['python', 'benchmarks/data_loader.py', *sys.argv[1:]])}`, {options.precision},",
        f"{where}, {machine('torch', 'transformers', 'numpy')}.",
        f"Packed rows (best_fit), engine fsdp2 on 1x1, medians of {options.turns} turns. Bound: a ratio of {BOUND:g}.",
        "",
        *table(f"{head} | ratio | a step waits, ms", rows),
    ]


if __name__ == "__main__":
    sys.exit(main())
