"""What a job costs besides its steps: one step of a 27M model on 2x2, from the command to its exit, in turn.

    python benchmarks/start.py                  # three rounds, about 10 minutes; the machine must be quiet
    python benchmarks/start.py --rounds 1       # does it work?

`tp2d train` on local processes, `tp2d train` under Ray Train, and the tutorials' recipe (`tutorial_recipe.py`), each on
the same text and model with empty caches of its own. Wall seconds until the process has ended; CPU seconds of it and
of everything it has started, where the kernel's cpuacct controller may be used here. Of the wall times the least of the
rounds counts: what disturbs a start only adds to it. Exits with 1 where ours takes more than its share of the recipe's.
"""

import argparse
import contextlib
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import RESULTS, WIKITEXT, Measured, machine, read_lines, run_logged, table, train_command, write_result
from data_speed import environment, tutorial_command
from held_out import VOCABULARY, prepare
from tp2d_train.runs.folder import RunFolder

SHAPE: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
BOUNDS = {"tp2d, local": 0.25, "tp2d, Ray": 0.5}
TUTORIALS = "tutorials' recipe, Ray"
CPUACCT = Path("/sys/fs/cgroup/cpuacct")
PHASES = ("command to launch", "launch to ranks", "ranks to first step", "step and save", "end")


def main() -> int:
    """Measures, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=WIKITEXT, help="folder with train.txt, a document a line")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS / "start.md")
    options = parser.parse_args()
    if not (options.data / "train.txt").exists():
        print(f"skipped: there is no {options.data / 'train.txt'}; give a folder with --data")
        return 0
    found: dict[str, list[Measured]] = {name: [] for name in (*BOUNDS, TUTORIALS)}
    with tempfile.TemporaryDirectory(prefix="start-") as folder:
        root = Path(folder)
        prepare(root, options.data)
        write_model(root)
        for _ in range(options.rounds):
            for name, measured in found.items():
                measured.append(run(root, name))
                print(f"{time.strftime('%H:%M:%S')} {name}: {measured[-1]}", flush=True)
    best = {name: min(measured, key=lambda one: one["wall"]) for name, measured in found.items()}
    write_result(options.output, page(best, rounds=options.rounds))
    return 0 if all(share(best, name) <= bound for name, bound in BOUNDS.items()) else 1


def write_model(root: Path) -> None:
    """The configuration of the 27M model, over the one that `prepare` has made."""
    from transformers import Qwen2Config

    config = Qwen2Config(
        **SHAPE,
        vocab_size=VOCABULARY,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        architectures=["Qwen2ForCausalLM"],
    )
    config.save_pretrained(root / "model")


def run(root: Path, name: str) -> Measured:
    """One job, from its command to its exit."""
    with tempfile.TemporaryDirectory(prefix="run-", dir=root) as folder, cpu_seconds() as cpu:
        storage = Path(folder)
        line = ["--model-name", str(root / "model"), "--dataset-name", str(root / "train"), "--seq-length", "512"]
        line += ["--batch-size-per-gpu", "1", "--storage-path", str(storage), "--name", "run"]
        command = tutorial_command(line, seconds=0.0) if name == TUTORIALS else our_command(line, name)
        begin = time.time()
        run_logged(command, environment=environment(storage))
        end = time.time()
        return {"wall": end - begin, "cpu": cpu(), "phases": phases(storage / "run", begin=begin, end=end)}


def our_command(line: list[str], name: str) -> list[str]:
    """The command that a user types for one step on 2x2."""
    line = [*line, "--from-scratch", "--tp-size", "2", "--dp-size", "2", "--max-steps", "1"]
    line += ["--dataset-percentage", "100", "--holdout-percentage", "0", "--warmup-steps", "0"]
    return train_command(*line, "--launcher", "local" if name.endswith("local") else "ray")


def phases(run: Path, *, begin: float, end: float) -> list[float]:
    """The seconds of each phase of `PHASES`, as our run's events mark them; empty for the recipe, which has none."""
    events = read_lines(RunFolder(run).events)
    said = [(event["time"], str(event.get("message", event["event"]))) for event in events]
    starts = ("starting", "joining", "the first step", "finished")
    marks = [next((at for at, text in said if text.startswith(start)), None) for start in starts]
    known = [begin, *(mark for mark in marks if mark is not None), end]
    return [after - before for before, after in itertools.pairwise(known)] if len(known) == 6 else []


@contextlib.contextmanager
def cpu_seconds() -> Iterator[Any]:
    """Counts CPU seconds of what is started within the block; yields a function: the seconds so far, None if unknown.

    Sums over children miss what Ray's own processes reap, so the kernel's accounting of a group is used.
    """
    group = CPUACCT / f"start-{os.getpid()}"
    try:
        group.mkdir()
        (group / "cgroup.procs").write_text(str(os.getpid()))
    except OSError:
        yield lambda: None
        return
    before = int((group / "cpuacct.usage").read_text())
    try:
        yield lambda: (int((group / "cpuacct.usage").read_text()) - before) / 1e9
    finally:
        (CPUACCT / "cgroup.procs").write_text(str(os.getpid()))
        with contextlib.suppress(OSError):  # something that Ray has left still ends
            group.rmdir()


def share(best: dict[str, Measured], name: str) -> float:
    """Wall time over that of the tutorials' recipe."""
    return best[name]["wall"] / best[TUTORIALS]["wall"]


def page(best: dict[str, Measured], *, rounds: int) -> list[str]:
    """The table and what it stands on."""
    rows = []
    for name, one in best.items():
        cpu = "" if one["cpu"] is None else f"{one['cpu']:.0f}"
        parts = [f"{seconds:.1f}" for seconds in one["phases"]] or [""] * len(PHASES)
        bound = f"{BOUNDS[name]:.2f}" if name in BOUNDS else ""
        rows.append((name, f"{one['wall']:.1f}", f"{share(best, name):.2f}", bound, cpu, *parts))
    head = " | ".join(["job", "wall s", "share", "at most", "CPU s", *PHASES])
    return [
        "# One step of a 27M model on 2x2, from the command to its exit",
        "",
        f"`python benchmarks/start.py --rounds {rounds}`; the least wall time of each job. {machine('torch', 'ray')}.",
        "",
        *table(head, rows),
    ]


if __name__ == "__main__":
    sys.exit(main())
