"""From the start to the first batch on a large corpus: first start, second start, and the memory of a rank.

    python benchmarks/data_startup.py                   # 1 GB of text, about 12 minutes on two quiet cores
    python benchmarks/data_startup.py --megabytes 30 --output /tmp/data_startup.md

Each of these in a fresh process, one after the other, with the built-in tokenizer (4,096 tokens) already on the disk,
as a hub's would be:

- bare: read lines and call `encode_batch_fast` of `tokenizers`, nothing else, on all cores, with the best of four
  batch sizes (each tried on the corpus' beginning); before and after the first start, of which the mean counts;
- first start: `create_dataloader` with no tokens in the cache, to the first batch;
- second start: the same command again, and 50 batches;
- imports: `import torch, datasets, transformers`, and nothing else.

Wall seconds are of the work itself, without imports, unless it says otherwise; processor seconds, of user and system,
are shown beside them, for a machine that is not quiet. Private memory is what a process has for itself alone: anonymous
pages, and pages of files it has changed (/proc/PID/smaps_rollup). Mapped pages of the cache belong to the page cache:
all processes share them and the kernel takes them back at will; what is mapped of them is shown beside. The highest
counts the processes that tokenise as the rank's. Exits with 1 if a bound is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from data_startup_report import Figures, report
from prose import write_prose

RESULT = Path(__file__).parent / "results" / "data_startup.md"
SEQ_LENGTH, BATCH, BATCHES = 512, 8, 50
BATCH_SIZES, TRIED_BYTES = (64, 256, 1024, 4096), 16 << 20  # documents of a bare batch
POLL_SECONDS = 0.5  # each look stops the process for some milliseconds


def main() -> int:
    """Measures everything and writes the table; as a child, does one part and prints its figures."""
    options = read_options()
    if options.child:
        print(json.dumps(CHILDREN[options.child](options)))
        return 0
    with tempfile.TemporaryDirectory(prefix="data-startup-") as folder:
        figures = measure(Path(folder), options)
    table, good = report(
        figures,
        command=f"python benchmarks/data_startup.py --megabytes {options.megabytes}",
        rows=f"{SEQ_LENGTH}, {BATCH} rows a batch",
        batch_sizes=BATCH_SIZES,
        batches=BATCHES,
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(table, encoding="utf-8")
    print(f"{table}\nwritten: {options.output}")
    return 0 if good else 1


def read_options() -> argparse.Namespace:
    """The command line; the last three options are those of a child."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1024, help="of text, 2**20 bytes each")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--child", choices=sorted(CHILDREN), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--batch-size", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(folder: Path, options: argparse.Namespace) -> Figures:
    """The figures of every part, by its name."""
    made_of = write_prose(folder / "corpus.txt", megabytes=options.megabytes)
    figures: Figures = {"made_of": made_of, "prepare": child("prepare", folder), "imports": child("imports", folder)}
    tried = [(child("try", folder, batch_size=size)["work"], size) for size in BATCH_SIZES * 2]
    figures["batch_size"] = min(tried)[1]
    bares = [child("bare", folder, batch_size=figures["batch_size"])]
    figures["first"] = child("first", folder)
    bares.append(child("bare", folder, batch_size=figures["batch_size"]))
    figures["bare"] = {name: sum(one[name] for one in bares) / 2 for name in bares[0]}
    figures["second"] = child("second", folder)
    return figures


def child(name: str, folder: Path, *, batch_size: int = 0) -> Figures:
    """Runs a part in a process of its own: what it says, and its memory at the highest."""
    command = [sys.executable, __file__, "--child", name, "--folder", str(folder), "--batch-size", str(batch_size)]
    begin = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peak = 0
    while process.poll() is None:
        peak = max(peak, sum(memory(one).get("private", 0) for one in (process.pid, *children(process.pid))))
        time.sleep(POLL_SECONDS)
    said = process.communicate()[0]
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}\nexit code {process.returncode}")
    print(f"{time.strftime('%H:%M:%S')} {name}, {time.monotonic() - begin:.1f} s: {said.splitlines()[-1]}", flush=True)
    return {**json.loads(said.splitlines()[-1]), "peak": peak}


def children(process: int) -> list[int]:
    """The processes that a process has started and that still run."""
    try:
        return list(map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split()))
    except OSError:
        return []


def memory(process: int | str = "self") -> dict[str, int]:
    """Bytes of `private` memory, and of mapped pages of files (`mapped`); nothing for a process that has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return {}
    size = {name: int(value.split()[0]) << 10 for name, value in (line.split(":") for line in lines)}
    private = max(size["Anonymous"], size["Private_Dirty"])
    return {"private": private, "mapped": size["Rss"] - size["Anonymous"], "unshared": size["Private_Clean"]}


# The parts, each in a child.


def timed(work: Callable[[], Any]) -> Figures:
    """Wall and processor seconds of `work`, and what it returns, if a dict."""
    used, begin = processor_seconds(), time.monotonic()
    said = work()
    seconds = {"work": time.monotonic() - begin, "processor": processor_seconds() - used}
    return seconds | (said if isinstance(said, dict) else {})


def processor_seconds() -> float:
    """Of this process so far, and of those it has started that have ended."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def imports(options: argparse.Namespace) -> Figures:
    """What every training process imports."""

    def work() -> None:
        import datasets  # noqa: F401
        import torch  # noqa: F401
        import transformers  # noqa: F401

    return timed(work) | memory()


def prepare(options: argparse.Namespace) -> Figures:
    """Puts the built-in tokenizer into the cache and beside the corpus; counts the corpus."""
    from tp2d_data import load_tokenizer

    tokenizer: Any = load_tokenizer("builtin:tiny", cache_dir=options.folder / "cache")
    tokenizer.backend_tokenizer.save(str(options.folder / "tokenizer.json"))
    with (options.folder / "corpus.txt").open("rb") as file:
        lengths = sorted(map(len, file))
    middle, high = lengths[len(lengths) // 2], lengths[len(lengths) * 99 // 100]
    return {"documents": len(lengths), "bytes": sum(lengths), "median": middle, "high": high, "longest": lengths[-1]}


def bare(options: argparse.Namespace) -> Figures:
    """The tokenizer's own speed."""
    return timed_bare(options, batches(options.folder / "corpus.txt", options.batch_size))


def try_bare(options: argparse.Namespace) -> Figures:
    """The same over the beginning, to choose a batch size."""
    with (options.folder / "corpus.txt").open(encoding="utf-8") as file:
        lines = file.readlines(TRIED_BYTES)
    return timed_bare(options, (lines[at : at + options.batch_size] for at in range(0, len(lines), options.batch_size)))


def timed_bare(options: argparse.Namespace, texts: Iterator[list[str]]) -> Figures:
    """Encodes every batch and keeps nothing."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(options.folder / "tokenizer.json"))

    def work() -> None:
        for some in texts:
            tokenizer.encode_batch_fast(some)

    return timed(work)


def batches(path: Path, size: int) -> Iterator[list[str]]:
    """Lists of `size` lines, without their ends."""
    with path.open(encoding="utf-8") as file:
        while some := [line[:-1] for line in islice(file, size)]:
            yield some


def first(options: argparse.Namespace) -> Figures:
    """From nothing to the first batch."""
    imports(options)
    return timed(lambda: {"statistics": describe(start(options)[0])})


def second(options: argparse.Namespace) -> Figures:
    """The same once more, and some batches; what it says are the memory then, and the time to the first batch."""
    imported = imports(options)
    made: list[Any] = []
    figures = timed(lambda: made.extend(start(options)))
    figures |= {"imports": imported["work"], "since_start": time.time() - started()}
    taken = sum(1 for _ in islice(made[1], BATCHES - 1))
    assert taken == BATCHES - 1, f"only {taken + 1} batches: take a larger corpus"
    return figures | memory()


def start(options: argparse.Namespace) -> tuple[Any, Iterator[Any]]:
    """A loader over the corpus, and its batches behind the first, which is made."""
    from tp2d_data import create_dataloader

    loader = create_dataloader(
        "builtin:tiny",
        str(options.folder / "corpus.txt"),
        SEQ_LENGTH,
        BATCH,
        0,
        1,
        dataset_percentage=100,
        cache_dir=options.folder / "cache",
    )
    batches = iter(loader)
    assert next(batches)["input_ids"].shape == (BATCH, SEQ_LENGTH)
    return loader, batches


def describe(loader: Any) -> dict[str, int]:
    """Documents, rows and tokens."""
    return {name: getattr(loader.statistics, name) for name in ("documents", "rows", "tokens")}


def started() -> float:
    """When this process was started, in seconds since 1970."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    up = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - up + ticks / os.sysconf("SC_CLK_TCK")


CHILDREN: dict[str, Callable[[argparse.Namespace], Figures]] = {
    "prepare": prepare,
    "imports": imports,
    "try": try_bare,
    "bare": bare,
    "first": first,
    "second": second,
}


if __name__ == "__main__":
    sys.exit(main())
