"""A whole job against the tutorials' recipe: useful tokens per second and held-out loss at equal wall time.

    python benchmarks/data_speed.py                     # everything, about 65 minutes; the machine must be quiet
    python benchmarks/data_speed.py --quick --only autotp:512
    python benchmarks/data_speed.py --report            # table and picture once more, from the figures kept

One Qwen2-shaped model, its tokenizer trained on the text, 2x2 workers under Ray Train, first `tutorial_recipe.py`, then
`python -m tp2d_train`, never both at a time. Each process is measured from its start to its exit, with nothing cached
from an earlier one; after `--seconds` it is asked to stop, saves and leaves. Useful tokens are the predicted ones, each
counted once. Each recipe takes the best of three learning rates, tried with fsdp2 for `--try-seconds`. The held-out
loss is that of the weights saved last, a mean over the tokens of the last 5 % of the lines, computed by one process
for both recipes in the same way. Every measurement is kept in `data_speed.json` as soon as it is there.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tutorial_recipe
from data_speed_report import read_kept, write_report

HERE = Path(__file__).parent
DATA = HERE.parent.parent / "shared" / "data" / "wikitext2"
ENGINES, LENGTHS, RECIPES = ("fsdp2", "autotp"), (512, 2048), ("tutorial", "tp2d")
BATCHES = {512: 4, 2048: 1}  # rows of a micro-batch: equally many tokens, padding and all, of every step
RATES = (3e-4, 1e-3, 3e-3)
HELD_OUT, VOCABULARY = 0.05, 4096
LEAVING_SECONDS = 300  # to finish a step, save and exit
EVALUATED_TOKENS = 512  # of a held-out line, at every seq_length
SIZES: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4, "num_attention_heads": 8}


def main() -> int:
    """Measures what is asked for, then writes the table and the picture of all that is kept."""
    options = read_options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that no run is left behind
    if options.report:
        return write_report(options.kept)
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
    return write_report(options.kept)


def read_options() -> argparse.Namespace:
    """The command line; `--quick` means short times, one rate, and figures that are kept elsewhere."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="folder with train.txt, a document a line")
    parser.add_argument("--only", action="append", type=case, metavar="ENGINE:LENGTH", help="e.g. fsdp2:512; repeat")
    parser.add_argument("--seconds", type=float, default=302.0, help="of each measured run")
    parser.add_argument("--try-seconds", type=float, default=100.0, help="of each learning rate tried")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="learning rates to try")
    parser.add_argument("--packing", choices=("pad", "concat", "best_fit"), default="best_fit")
    parser.add_argument("--kept", type=Path, default=HERE / "results" / "data_speed.json")
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


def prepare(root: Path, data: Path) -> None:
    """Makes `root`/train, `root`/held-out and `root`/model (configuration and tokenizer, no weights)."""
    from transformers import Qwen2Config, Qwen2Tokenizer

    lines = (data / "train.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    cut = round(len(lines) * (1 - HELD_OUT))
    for name, part in (("train", lines[:cut]), ("held-out", lines[cut:])):
        (root / name).mkdir()
        (root / name / "train.txt").write_text("".join(part), encoding="utf-8")
    tokenizer = Qwen2Tokenizer().train_new_from_iterator(lines[:cut], VOCABULARY, show_progress=False)
    tokenizer.save_pretrained(root / "model")
    config = Qwen2Config(
        **SIZES,
        num_key_value_heads=4,
        vocab_size=VOCABULARY,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        architectures=["Qwen2ForCausalLM"],
    )
    config.save_pretrained(root / "model")


def measure(root: Path, options: argparse.Namespace, *, engine: str, length: int, recipe: str) -> None:
    """One recipe at its best rate, and before that the rates, unless they are kept already."""
    what: dict[str, Any] = {"length": length, "recipe": recipe}
    rates = options.rates if len(options.rates) > 1 else ()
    what |= {"packing": options.packing if recipe == "tp2d" else "pad"}
    tries = {"engine": "fsdp2", "purpose": "try", "seconds": options.try_seconds}
    tried = [kept_or_run(root, options, **what, **tries, rate=rate) for rate in rates]
    best = min(tried, key=lambda figures: figures["held_out_loss"])["rate"] if tried else options.rates[0]
    kept_or_run(root, options, **what, engine=engine, purpose="final", seconds=options.seconds, rate=best)


def kept_or_run(root: Path, options: argparse.Namespace, **what: Any) -> dict[str, Any]:
    """The figures of one run: those kept for the same `what`, else measured now and kept."""
    kept = read_kept(options.kept)
    for figures in kept:
        if all(figures[name] == value for name, value in what.items()):
            return figures
    figures = {**what, **run(root, **what), "versions": versions(), "cores": os.cpu_count()}
    options.kept.parent.mkdir(parents=True, exist_ok=True)
    options.kept.write_text(json.dumps([*kept, figures]) + "\n", encoding="utf-8")
    speed = figures["tokens"] / figures["wall_seconds"]
    shown = " ".join(str(what[name]) for name in ("engine", "length", "recipe", "rate"))
    print(
        f"{time.strftime('%H:%M:%S')} {shown}: {figures['steps']} steps in {figures['wall_seconds']:.0f} s, "
        f"{speed:.0f} useful tok/s, held-out loss {figures['held_out_loss']:.3f}",
        flush=True,
    )
    return figures


def versions() -> dict[str, str]:
    """Of what the speed depends on."""
    return {name: version(name) for name in ("torch", "transformers", "ray", "deepspeed", "datasets")}


def run(root: Path, *, engine: str, length: int, rate: float, **how: Any) -> dict[str, Any]:
    """Trains once in a process of its own, and evaluates what it has saved."""
    ours = how["recipe"] == "tp2d"
    with tempfile.TemporaryDirectory(prefix="run-", dir=root) as folder:
        storage = Path(folder)
        line = ["--engine", engine, "--model-name", str(root / "model"), "--dataset-name", str(root / "train")]
        line += [
            "--seq-length",
            str(length),
            "--batch-size-per-gpu",
            str(BATCHES[length]),
            "--learning-rate",
            str(rate),
        ]
        line += ["--storage-path", str(storage), "--name", "run"]
        line += ["--log-interval", "5"] if ours else []
        command = our_command(line, packing=how["packing"]) if ours else tutorial_command(line, seconds=how["seconds"])
        begin = time.time()
        run_logged(command, environment=environment(storage), stop_after=how["seconds"] if ours else None)
        wall = time.time() - begin
        figures = read_ours(storage / "run", begin=begin) if ours else read_tutorial(storage / "run")
        loss, tokens = evaluate(root, load_weights(root, storage / "run", engine=engine, ours=ours))
        return {**figures, "wall_seconds": wall, "held_out_loss": loss, "held_out_tokens": tokens}


def environment(storage: Path) -> dict[str, str]:
    """That of both recipes: caches of their own, still empty, and no network."""
    caches = {name: str(storage / name) for name in ("TP2D_CACHE", "HF_DATASETS_CACHE")}
    return {**os.environ, **caches, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}


def tutorial_command(line: list[str], *, seconds: float) -> list[str]:
    """The baseline, which stops by itself."""
    return [sys.executable, str(HERE / "tutorial_recipe.py"), *line, "--budget", str(seconds)]


def our_command(line: list[str], *, packing: str) -> list[str]:
    """The command that a user types, for longer than it will be allowed to run."""
    command = [sys.executable, "-m", "tp2d_train", *line, "--from-scratch", "--tp-size", "2", "--dp-size", "2"]
    command += ["--dataset-percentage", "100", "--holdout-percentage", "0", "--num-epochs", "100000"]
    return [*command, "--packing", packing]


def run_logged(command: list[str], *, environment: dict[str, str], stop_after: float | None) -> None:
    """Runs a command, with one interrupt after so many seconds; what it said is shown if it does not exit rightly."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            process.wait(stop_after)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            process.wait(LEAVING_SECONDS)
        finally:
            if process.poll() is None:  # this script was stopped, or the run does not end
                os.killpg(process.pid, signal.SIGKILL)
        if process.returncode != (0 if stop_after is None else 128 + signal.SIGINT):
            log.seek(0)
            raise SystemExit(f"{' '.join(command)}\nexit code {process.returncode}\n{log.read()[-6000:]}")


def read_tutorial(run: Path) -> dict[str, Any]:
    """What the baseline wrote: tokens, steps, and losses of one rank by seconds since the start."""
    figures = json.loads((run / "result.json").read_text())
    return {name: figures[name] for name in ("tokens", "steps", "curve")}


def read_ours(run: Path, *, begin: float) -> dict[str, Any]:
    """The same of our run; its losses are those of the global batch, every fifth step."""
    summary = json.loads((run / "summary.json").read_text())
    events = [json.loads(text) for text in (run / ".events.jsonl").read_text().splitlines()]
    curve = [(event["time"] - begin, event["loss"]) for event in events if event["event"] == "step"]
    return {"tokens": summary["tokens"], "steps": summary["step"], "curve": curve}


def load_weights(root: Path, run: Path, *, engine: str, ours: bool) -> Any:
    """The model with the weights that a run saved last, whole in this process."""
    from tp2d_train.export import export
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    if ours:
        return AutoModelForCausalLM.from_pretrained(export(run))
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(root / "model"))
    tutorial_recipe.load_weights(run, model, engine=engine)
    return model


def evaluate(root: Path, model: Any) -> tuple[float, int]:
    """The mean loss over the predicted tokens of the held-out lines, and their number; one line at a time."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(root / "model")
    lines = (root / "held-out" / "train.txt").read_text(encoding="utf-8").splitlines()
    rows = [torch.tensor([tokenizer(line)["input_ids"][:EVALUATED_TOKENS]]) for line in lines]
    rows = [row for row in rows if row.numel() > 1]
    tokens = sum(row.numel() - 1 for row in rows)
    with torch.inference_mode():
        model.eval()
        return sum(float(model(row, labels=row).loss) * (row.numel() - 1) for row in rows) / tokens, tokens


if __name__ == "__main__":
    sys.exit(main())
