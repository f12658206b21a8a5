"""A whole job against the tutorials' recipe: useful tokens per second and held-out loss in equal wall time.

    python benchmarks/data_speed.py                     # everything, about 65 minutes; the machine must be quiet
    python benchmarks/data_speed.py --quick --only autotp:512    # does it work? about 3 minutes
    python benchmarks/data_speed.py --report            # table and picture again, from the kept measurements

One Qwen2-shaped model, its tokenizer trained on the text, 2x2 workers under Ray Train; first `tutorial_recipe.py`, then
`tp2d train`, never both at a time. Each process is measured from its start to its exit, with empty caches.
After `--seconds` it is asked to stop, saves and exits. A useful token is a predicted one, counted once. Each recipe
trains with the best of three learning rates, each tried with fsdp2 for `--try-seconds`. The held-out loss is that of
the weights saved last: the mean over the tokens of the last 5 % of the lines, computed by one process in the same way
for both recipes. Each measurement is kept in `data_speed.json` as soon as it is made.
"""

import argparse
import dataclasses
import json
import os
import signal
import sys
import tempfile
import time
from operator import itemgetter
from pathlib import Path

from common import (
    DOCS,
    HERE,
    RESULTS,
    WIKITEXT,
    Curve,
    Measured,
    draw,
    read_lines,
    run_logged,
    table,
    train_command,
    versions,
    write_result,
)
from held_out import evaluate, load_weights, prepare
from tp2d_train.runs.folder import RunFolder

ENGINES, LENGTHS, RECIPES = ("fsdp2", "autotp"), (512, 2048), ("tutorial", "tp2d")
NAMES = {"tutorial": "tutorials' recipe", "tp2d": "tp2d"}
COLOURS = {"tutorial": "#ea580c", "tp2d": "#2563eb"}
BATCHES = {512: 4, 2048: 1}  # rows of a micro-batch: equally many tokens of every step, padding included
RATES = (3e-4, 1e-3, 3e-3)
SMOOTHED_OVER = 10.0  # seconds
PACKAGES = ("torch", "transformers", "ray", "deepspeed", "datasets")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """One run to measure. Its fields are kept with the measurement, under the same names."""

    length: int  # tokens of a row
    recipe: str
    packing: str
    engine: str
    purpose: str  # try (a learning rate) or final
    seconds: float
    rate: float


def main() -> int:
    """Measures what is asked for, then writes the table and the picture of everything that is kept."""
    options = read_options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that no run is left behind
    if options.report:
        return report(options.kept)
    if options.quick:
        options.kept.unlink(missing_ok=True)
    if not (options.data / "train.txt").exists():
        print(f"skipped: there is no {options.data / 'train.txt'}; give a folder with --data")
        return 0
    with tempfile.TemporaryDirectory(prefix="data-speed-") as folder:
        root = Path(folder)
        prepare(root, options.data)
        for engine, length in options.only:
            for recipe in RECIPES:
                measure(root, options, engine=engine, length=length, recipe=recipe)
    return report(options.kept)


def read_options() -> argparse.Namespace:
    """The command line; `--quick` means short runs, one rate, and measurements that are kept elsewhere."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=WIKITEXT, help="folder with train.txt, a document a line")
    parser.add_argument("--only", action="append", type=case, metavar="ENGINE:LENGTH", help="e.g. fsdp2:512; repeat")
    parser.add_argument("--seconds", type=float, default=302.0, help="of each final run")
    parser.add_argument("--try-seconds", type=float, default=100.0, help="of each learning rate tried")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="learning rates to try")
    parser.add_argument("--packing", choices=("pad", "concat", "best_fit"), default="best_fit")
    parser.add_argument("--kept", type=Path, default=RESULTS / "data_speed.json")
    parser.add_argument("--quick", action="store_true", help="60 seconds a run, one rate: does the script work?")
    parser.add_argument("--report", action="store_true", help="measure nothing")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.rates = 60.0, options.rates[1:2]
        options.kept = Path(tempfile.gettempdir()) / "data_speed_quick" / "data_speed.json"
    options.only = options.only or [(engine, length) for engine in ENGINES for length in LENGTHS]
    return options


def case(text: str) -> tuple[str, int]:
    """`fsdp2:512` as a pair."""
    engine, _, length = text.partition(":")
    if engine not in ENGINES or not length.isdigit() or int(length) not in LENGTHS:
        raise argparse.ArgumentTypeError(f"{text!r}: engine ({', '.join(ENGINES)}), a colon, length {LENGTHS}")
    return engine, int(length)


def measure(root: Path, options: argparse.Namespace, *, engine: str, length: int, recipe: str) -> None:
    """One recipe at its best learning rate, after all rates were tried, unless the measurements are kept already."""
    packing = options.packing if recipe == "tp2d" else "pad"
    final = Job(
        length=length,
        recipe=recipe,
        packing=packing,
        engine=engine,
        purpose="final",
        seconds=options.seconds,
        rate=options.rates[0],
    )
    if len(options.rates) > 1:
        trial = dataclasses.replace(final, engine="fsdp2", purpose="try", seconds=options.try_seconds)
        tried = [kept_or_run(root, options.kept, dataclasses.replace(trial, rate=rate)) for rate in options.rates]
        best = min(tried, key=lambda measured: measured["held_out_loss"])["rate"]
        final = dataclasses.replace(final, rate=best)
    kept_or_run(root, options.kept, final)


def kept_or_run(root: Path, path: Path, job: Job) -> Measured:
    """What was measured for `job` and is kept in the file `path`, else measured now and kept."""
    kept, fields = read_kept(path), dataclasses.asdict(job)
    for measured in kept:
        if all(measured[name] == value for name, value in fields.items()):
            return measured
    measured = {**fields, **run(root, job), "versions": versions(*PACKAGES), "cores": os.cpu_count()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([*kept, measured]) + "\n", encoding="utf-8")
    print(
        f"{time.strftime('%H:%M:%S')} {job.engine} {job.length} {job.recipe} {job.rate}: {measured['steps']} steps in "
        f"{measured['wall_seconds']:.0f} s, {speed(measured):.0f} useful tok/s, "
        f"held-out loss {measured['held_out_loss']:.3f}",
        flush=True,
    )
    return measured


def run(root: Path, job: Job) -> Measured:
    """Trains once in a process of its own, and evaluates the weights that it saved."""
    ours = job.recipe == "tp2d"
    with tempfile.TemporaryDirectory(prefix="run-", dir=root) as folder:
        storage = Path(folder)
        line = ["--engine", job.engine, "--model-name", str(root / "model"), "--dataset-name", str(root / "train")]
        line += ["--seq-length", str(job.length), "--batch-size-per-gpu", str(BATCHES[job.length])]
        line += ["--learning-rate", str(job.rate), "--storage-path", str(storage), "--name", "run"]
        command = our_command(line, packing=job.packing) if ours else tutorial_command(line, seconds=job.seconds)
        begin = time.time()
        run_logged(command, environment=environment(storage), stop_after=job.seconds if ours else None)
        wall = time.time() - begin
        measured = read_ours(storage / "run", begin=begin) if ours else read_tutorial(storage / "run")
        loss, tokens = evaluate(root, load_weights(root, storage / "run", engine=job.engine, ours=ours))
        return {**measured, "wall_seconds": wall, "held_out_loss": loss, "held_out_tokens": tokens}


def environment(storage: Path) -> dict[str, str]:
    """That of both recipes: caches of their own, still empty, and no network."""
    caches = {name: str(storage / name) for name in ("TP2D_CACHE", "HF_DATASETS_CACHE")}
    return {**os.environ, **caches, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}


def tutorial_command(line: list[str], *, seconds: float) -> list[str]:
    """The baseline, which stops by itself."""
    return [sys.executable, str(HERE / "tutorial_recipe.py"), *line, "--budget", str(seconds)]


def our_command(line: list[str], *, packing: str) -> list[str]:
    """The command that a user types, for more epochs than it will be allowed to run."""
    line = [*line, "--from-scratch", "--tp-size", "2", "--dp-size", "2", "--packing", packing, "--log-interval", "5"]
    line += ["--dataset-percentage", "100", "--holdout-percentage", "0", "--num-epochs", "100000"]
    return train_command(*line)


def read_tutorial(run: Path) -> Measured:
    """What the baseline wrote: tokens, steps, and the losses of one rank by seconds since the start."""
    measured = json.loads((run / "result.json").read_text())
    return {name: measured[name] for name in ("tokens", "steps", "curve")}


def read_ours(run: Path, *, begin: float) -> Measured:
    """The same of our run; its losses are those of the global batch, of every fifth step."""
    folder = RunFolder(run)
    summary = json.loads(folder.summary.read_text())
    curve = [(e["time"] - begin, e["loss"]) for e in read_lines(folder.events) if e["event"] == "step"]
    return {"tokens": summary["tokens"], "steps": summary["step"], "curve": curve}


def report(path: Path) -> int:
    """Writes the table beside the measurements in the file `path`, and the picture, to docs/ for those of results/."""
    kept = read_kept(path)
    what = itemgetter("length", "engine", "recipe", "packing")  # of equal ones the newest counts
    finals = list({what(measured): measured for measured in kept if measured["purpose"] == "final"}.values())
    finals.sort(key=lambda m: (m["length"], m["engine"] != "fsdp2", m["recipe"] != "tutorial"))
    if not finals:
        print(f"nothing to report: {path} holds no measured run")
        return 1
    panels: dict[str, list[Curve]] = {}
    for measured in finals:
        panels.setdefault(f"{measured['engine']}, seq_length {measured['length']}", []).append(curve_of(measured))
    picture = (DOCS if path.parent.name == "results" else path.parent) / "data_speed.png"
    x, y = "wall seconds since the command", "training loss; dot: held-out"
    draw(panels, picture, x=x, y=y, size=(3.6, 3.2), font=9)
    write_result(path.with_suffix(".md"), [*heading(finals), *results(finals), *tries(kept)])
    return 0


def read_kept(path: Path) -> list[Measured]:
    """What was measured so far."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def heading(finals: list[Measured]) -> list[str]:
    """What the page is about."""
    first = finals[0]
    packages = ", ".join(f"{name} {number}" for name, number in first["versions"].items())
    tokens = sorted({measured["held_out_tokens"] for measured in finals})
    return [
        "# A whole job against the tutorials' recipe",
        "",
        f"`python benchmarks/data_speed.py`, {first['cores']} cores, CPU, gloo, fp32, 2x2, {packages}.",
        "See the script for what is measured and how. A useful token is a predicted one, counted once; wall seconds",
        "are those of the process, from its start to its exit, with start-up, tokenising and saving. The held-out loss",
        f"is the mean over {', '.join(map(str, tokens))} tokens of lines that neither has seen, with the weights saved",
        "at the end.",
        "",
    ]


def results(finals: list[Measured]) -> list[str]:
    """A row for each final run; the ratio is to the baseline of the same engine and length."""
    base = {(m["length"], m["engine"]): speed(m) for m in finals if m["recipe"] == "tutorial"}
    rows = []
    for measured in finals:
        case = measured["length"], measured["engine"]
        ratio = f"{speed(measured) / base[case]:.2f}" if case in base else ""
        work = [f"{measured['wall_seconds']:.0f}", measured["steps"], f"{measured['tokens']:,}"]
        result = [f"{speed(measured):.0f}", ratio, f"{measured['held_out_loss']:.3f}"]
        rows.append([*case, name_of(measured), f"{measured['rate']:g}", *work, *result])
    head = "seq_length | engine | recipe | learning rate | wall s | steps | useful tokens | useful tok/s | ratio"
    return table(f"{head} | held-out loss", rows)


def tries(kept: list[Measured]) -> list[str]:
    """A row for each learning rate that was tried."""
    found = [measured for measured in kept if measured["purpose"] == "try"]
    if not found:
        return []
    found.sort(key=lambda m: (m["length"], m["recipe"] != "tutorial", m["rate"]))
    rows = [[m["length"], name_of(m), f"{m['rate']:g}", m["steps"], f"{m['held_out_loss']:.3f}"] for m in found]
    seconds = f"{found[0]['seconds']:.0f}"
    head = f"Learning rates, each tried for {seconds} s with fsdp2; the better one was taken above:"
    return ["", head, "", *table("seq_length | recipe | learning rate | steps | held-out loss", rows)]


def name_of(measured: Measured) -> str:
    """The recipe, and the packing of ours."""
    return NAMES[measured["recipe"]] + (f", {measured['packing']}" if measured["recipe"] == "tp2d" else "")


def speed(measured: Measured) -> float:
    """Useful tokens per second."""
    return measured["tokens"] / measured["wall_seconds"]


def curve_of(measured: Measured) -> Curve:
    """The mean training loss of every `SMOOTHED_OVER` seconds, at their middle; the dot is the held-out loss."""
    bins: dict[int, list[float]] = {}
    for seconds, loss in measured["curve"]:
        bins.setdefault(int(seconds // SMOOTHED_OVER), []).append(loss)
    points = [((number + 0.5) * SMOOTHED_OVER, sum(part) / len(part)) for number, part in sorted(bins.items())]
    dot = measured["wall_seconds"], measured["held_out_loss"]
    return Curve(label=name_of(measured), points=points, style={"color": COLOURS[measured["recipe"]]}, dot=dot)


if __name__ == "__main__":
    sys.exit(main())
