"""From the start to the first batch on a large corpus: first start, second start, and the memory of a rank.

    python benchmarks/data_startup.py                   # 1 GB of text, about 12 minutes on two quiet cores
    python benchmarks/data_startup.py --megabytes 30 --output /tmp/data_startup.md    # about 1 minute

Each of these runs in a fresh process, one after the other. The built-in tokenizer (4,096 tokens) is already on the
disk, as a downloaded one would be:

- bare: read lines and call `encode_batch_fast` of `tokenizers`, nothing else, on all cores, with the best of four
  batch sizes (each tried on the beginning of the corpus); it runs before and after the first start, the mean counts;
- first start: `create_dataloader` with no tokens in the cache, to the first batch;
- second start: the same again, and 50 batches;
- imports: `import torch, datasets, transformers`, and nothing else.

Wall seconds are those of the work itself, without imports, unless it says otherwise. Processor seconds (user and
system) are shown beside them, for a machine that is not quiet. Private memory is what a process has for itself alone:
anonymous pages, and pages of files that it has changed (/proc/PID/smaps_rollup); the highest of the first start
includes that of the processes that tokenise. Mapped pages of the cache belong to the page cache: all processes share
them and the kernel takes them back at will. Exits with 1 if a bound is missed.
"""

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

from common import RESULTS, Measured, machine, table, write_result
from prose import write_prose

SEQ_LENGTH, BATCH, BATCHES = 512, 8, 50
BATCH_SIZES, TRIED_BYTES = (64, 256, 1024, 4096), 16 << 20  # documents of a bare batch
POLL_SECONDS = 0.5  # each look at its memory stops the process for some milliseconds
RATIO_BOUND, SECOND_START_BOUND, MEMORY_BOUND = 1.3, 3.0, 300  # times, seconds, MB (10**6 bytes)
NAMES = {"bare": "bare `tokenizers` loop", "first": "first start", "second": "second start", "imports": "imports"}


def main() -> int:
    """Measures everything and writes the table; as a child, does one part and prints what it measured."""
    options = read_options()
    if options.child:
        print(json.dumps(CHILDREN[options.child](options)))
        return 0
    with tempfile.TemporaryDirectory(prefix="data-startup-") as folder:
        measured = measure(Path(folder), options)
    checks = bounds(measured)
    write_result(options.output, report(measured, checks, megabytes=options.megabytes))
    return 0 if all(value <= most for _, value, most, _ in checks) else 1


def read_options() -> argparse.Namespace:
    """The command line; the last three options are those of a child."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=1024, help="of text, 2**20 bytes each")
    parser.add_argument("--output", type=Path, default=RESULTS / "data_startup.md")
    parser.add_argument("--child", choices=sorted(CHILDREN), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--batch-size", type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(folder: Path, options: argparse.Namespace) -> Measured:
    """What each part measured, by its name."""
    made_of = write_prose(folder / "corpus.txt", megabytes=options.megabytes)
    measured: Measured = {"made_of": made_of, "prepare": child("prepare", folder), "imports": child("imports", folder)}
    tried = [(child("try", folder, batch_size=size)["work"], size) for size in BATCH_SIZES * 2]
    measured["batch_size"] = min(tried)[1]
    bares = [child("bare", folder, batch_size=measured["batch_size"])]
    measured["first"] = child("first", folder)
    bares.append(child("bare", folder, batch_size=measured["batch_size"]))
    measured["bare"] = {name: sum(one[name] for one in bares) / 2 for name in bares[0]}
    measured["second"] = child("second", folder)
    return measured


def child(name: str, folder: Path, *, batch_size: int = 0) -> Measured:
    """Runs a part in a process of its own: what it measured, and the highest private memory."""
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
    """Bytes of `private` memory, and of `mapped` pages of files; nothing for a process that has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return {}
    size = {name: int(value.split()[0]) << 10 for name, value in (line.split(":") for line in lines)}
    return {"private": max(size["Anonymous"], size["Private_Dirty"]), "mapped": size["Rss"] - size["Anonymous"]}


# The parts, each in a child.


def timed(work: Callable[[], Any]) -> Measured:
    """Wall and processor seconds of `work`, and what it returns, if a dict."""
    used, begin = processor_seconds(), time.monotonic()
    said = work()
    seconds = {"work": time.monotonic() - begin, "processor": processor_seconds() - used}
    return seconds | (said if isinstance(said, dict) else {})


def processor_seconds() -> float:
    """Of this process so far, and of those that it has started and that have ended."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def imports(options: argparse.Namespace) -> Measured:
    """What every training process imports."""

    def work() -> None:
        import datasets  # noqa: F401
        import torch  # noqa: F401
        import transformers  # noqa: F401

    return timed(work) | memory()


def prepare(options: argparse.Namespace) -> Measured:
    """Puts the built-in tokenizer into the cache and beside the corpus; counts the corpus."""
    from tp2d_data import load_tokenizer

    tokenizer: Any = load_tokenizer("builtin:tiny", cache_dir=options.folder / "cache")
    tokenizer.backend_tokenizer.save(str(options.folder / "tokenizer.json"))
    with (options.folder / "corpus.txt").open("rb") as file:
        lengths = sorted(map(len, file))
    middle, high = lengths[len(lengths) // 2], lengths[len(lengths) * 99 // 100]
    return {"documents": len(lengths), "bytes": sum(lengths), "median": middle, "high": high, "longest": lengths[-1]}


def bare(options: argparse.Namespace) -> Measured:
    """The tokenizer's own speed."""
    return timed_bare(options, batches(options.folder / "corpus.txt", options.batch_size))


def try_bare(options: argparse.Namespace) -> Measured:
    """The same over the beginning, to choose a batch size."""
    with (options.folder / "corpus.txt").open(encoding="utf-8") as file:
        lines = file.readlines(TRIED_BYTES)
    return timed_bare(options, (lines[at : at + options.batch_size] for at in range(0, len(lines), options.batch_size)))


def timed_bare(options: argparse.Namespace, texts: Iterator[list[str]]) -> Measured:
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


def first(options: argparse.Namespace) -> Measured:
    """From nothing to the first batch."""
    imports(options)
    return timed(lambda: count(start(options)[0]))


def second(options: argparse.Namespace) -> Measured:
    """The same again, and some batches; then the memory, and the seconds from the process's start on."""
    imported = imports(options)
    made: list[Any] = []
    measured = timed(lambda: made.extend(start(options)))
    measured |= {"imports": imported["work"], "since_start": time.time() - started()}
    taken = sum(1 for _ in islice(made[1], BATCHES - 1))
    assert taken == BATCHES - 1, f"only {taken + 1} batches: take a larger corpus"
    return measured | memory()


def start(options: argparse.Namespace) -> tuple[Any, Iterator[Any]]:
    """A loader over the corpus, and its batches after the first, which is made."""
    from tp2d_data import create_dataloader

    corpus, cache = options.folder / "corpus.txt", options.folder / "cache"
    loader = create_dataloader(
        "builtin:tiny", str(corpus), SEQ_LENGTH, BATCH, 0, 1, dataset_percentage=100, cache_dir=cache
    )
    batches = iter(loader)
    assert next(batches)["input_ids"].shape == (BATCH, SEQ_LENGTH)
    return loader, batches


def count(loader: Any) -> dict[str, int]:
    """Rows and tokens."""
    return {name: getattr(loader.statistics, name) for name in ("rows", "tokens")}


def started() -> float:
    """When this process was started, in seconds since 1970."""
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    up = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - up + ticks / os.sysconf("SC_CLK_TCK")


CHILDREN: dict[str, Callable[[argparse.Namespace], Measured]] = {
    "prepare": prepare,
    "imports": imports,
    "try": try_bare,
    "bare": bare,
    "first": first,
    "second": second,
}


# The table.


def bounds(measured: Measured) -> list[tuple[str, float, float, str]]:
    """What is bounded: its name, what was measured, the most it may be, the unit of both."""
    bare, first, second = (measured[name] for name in ("bare", "first", "second"))
    highest, after = ((number - measured["imports"]["private"]) / 1e6 for number in (first["peak"], second["private"]))
    return [
        ("first start / bare, wall", first["work"] / bare["work"], RATIO_BOUND, ""),
        ("second start without imports", second["work"], SECOND_START_BOUND, " s"),
        ("private memory above the imports, highest in the first start", highest, MEMORY_BOUND, " MB"),
        (f"private memory above the imports, after {BATCHES} batches", after, MEMORY_BOUND, " MB"),
    ]


def report(measured: Measured, checks: list[tuple[str, float, float, str]], *, megabytes: int) -> list[str]:
    """The page of results."""
    corpus, imports, bare, first, second = (measured[n] for n in ("prepare", "imports", "bare", "first", "second"))
    size = corpus["bytes"] / 1e6
    speeds = {"bare": f"{size / bare['work']:.1f}", "first": f"{size / first['work']:.1f}"}
    times = [
        [name, f"{measured[part]['work']:.2f}", f"{measured[part]['processor']:.2f}", speeds.get(part, "")]
        for part, name in NAMES.items()
    ]
    verdicts = [
        [name, f"{value:.2f}{unit}", f"{most:g}{unit}", "kept" if value <= most else "missed"]
        for name, value, most, unit in checks
    ]
    return [
        "# From the start to the first batch",
        "",
        f"`python benchmarks/data_startup.py --megabytes {megabytes}`, "
        f"{machine('tokenizers', 'datasets', 'transformers', 'torch')}.",
        f"{size:,.0f} MB of text in {corpus['documents']:,} documents, made of {measured['made_of']};",
        f"a document has {corpus['median']} bytes (median), {corpus['high']:,} (99 %), {corpus['longest']:,} (most).",
        f"{first['tokens']:,} tokens in {first['rows']:,} rows of {SEQ_LENGTH}, {BATCH} rows a batch. The script says "
        "what is measured.",
        "",
        *table(" | wall s | processor s | MB of text per s", times),
        "",
        f"Bare: batches of {measured['batch_size']} documents, the best of {', '.join(map(str, BATCH_SIZES))}.",
        f"First start / bare in processor seconds: {first['processor'] / bare['processor']:.2f}.",
        f"Second start with the interpreter and all imports: {second['since_start']:.2f} s to the first batch, of",
        f"which `import torch, datasets, transformers` took {second['imports']:.2f} s.",
        f"Private memory of the imports alone: {imports['private'] / 1e6:.0f} MB. Mapped pages of files after",
        f"{BATCHES} batches: {second['mapped'] / 1e6:.0f} MB, of the imports alone {imports['mapped'] / 1e6:.0f} MB.",
        "",
        *table("bound | measured | at most | ", verdicts),
    ]


if __name__ == "__main__":
    sys.exit(main())
