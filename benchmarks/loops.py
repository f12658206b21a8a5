"""A training step of ours side by side with the loops that people write, or take, today.

    python benchmarks/loops.py --before PYTHON       # about 20 minutes on two idle cores
    python benchmarks/loops.py --quick --output /tmp/loops.md      # tries it, in a minute; compares with no bound

Three comparisons of the built-in model `small` in fp32 on gloo, each contender on the same weights and rows:

- 2x2, rows of 512: ours, a hand-written torch loop with the same plan, transformers' native tensor parallelism and
  FSDP2, transformers' Trainer over accelerate (on two ranks: on CPUs it has data parallelism only), and transformers
  alone in one process on the same global batches;
- 1x1, rows of 512: ours and transformers alone;
- packed, 2x2, rows of 2,048 with documents of 128 tokens: ours, and ours of another checkout, `--before` the path of
  the interpreter in its environment.

All ranks of a comparison live as long as it does, and only one contender computes at a time, some steps each, for
`--rounds` rounds, in alternating order; steps before the first round do not count. A rank has one thread. A ratio is
taken within a round, and the table has the median. Exits with 1 where a ratio exceeds its bound.

Trainer needs accelerate, which the environment does not have. It need not be installed there:

    pip install --no-deps --target DIR accelerate
    PYTHONPATH=DIR python benchmarks/loops.py
"""

import argparse
import random
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from common import RESULTS, machine, table, write_result
from loop_group import Group, ratios

UNCOUNTED = 2  # steps of each contender before the first round: one, then one whose collectives are counted
DOCUMENT, DOCUMENTS = 128, 4096  # tokens of a document; documents of the corpus

NOTES = """
Times are medians. A ratio is ours to that loop: the median over rounds, with the least and the most. Memory is the
most that a loop added to a rank's private memory. Ours gives the mean loss over all tokens, the others the mean of
the ranks' means. The last row clips gradients; loops that do not are as far from it as that moves them. Collectives
are those of one step on rank 0, bytes are of whole tensors, groups of one rank are left out."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One contender in one comparison.

    Args:
        name: what the table calls it.
        kind: a key of `loop_contenders.CONTENDERS`.
        clip: whether it clips gradients.
        layout: dp and tp, where they are not the comparison's; the global batch is.
        before: whether it runs in the environment of the other checkout.
    """

    name: str
    kind: str
    clip: bool = False
    layout: tuple[int, int] | None = None
    before: bool = False


OURS = Entry(name="ours", kind="ours", clip=True)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Contenders on one mesh and one kind of rows; ours comes first, the one that losses are compared with last.

    Args:
        dp: data parallel size.
        tp: tensor parallel size.
        seq_length: tokens of a row; a dp rank has one row a step.
        packed: whether documents see only themselves.
        entries: the contenders.
        against: the contender of the bound.
        bound: the most that ours may take of its wall time.
    """

    dp: int
    tp: int
    seq_length: int
    packed: bool = False
    entries: Sequence[Entry]
    against: str
    bound: float

    @property
    def title(self) -> str:
        """Of its table."""
        rows = f"{self.dp}x{self.tp}, rows of {self.seq_length:,}"
        return f"{rows} packed with documents of {DOCUMENT} tokens" if self.packed else rows


COMPARISONS = {
    "2x2": Comparison(
        dp=2,
        tp=2,
        seq_length=512,
        entries=(
            OURS,
            Entry(name="by hand, not clipped", kind="by-hand"),
            Entry(name="by hand, clipped", kind="by-hand", clip=True),
            Entry(name="transformers native, not clipped", kind="native"),
            Entry(name="Trainer with accelerate, 2x1 (DDP), not clipped", kind="trainer", layout=(2, 1)),
            Entry(name="one process, clipped", kind="plain", clip=True, layout=(1, 1)),
        ),
        against="by hand, not clipped",
        bound=0.77,
    ),
    "1x1": Comparison(
        dp=1,
        tp=1,
        seq_length=512,
        entries=(
            OURS,
            Entry(name="transformers alone, not clipped", kind="plain"),
            Entry(name="transformers alone, clipped", kind="plain", clip=True),
        ),
        against="transformers alone, not clipped",
        bound=1.05,
    ),
    "packed": Comparison(
        dp=2,
        tp=2,
        seq_length=2048,
        packed=True,
        entries=(OURS, Entry(name="ours, before", kind="ours", clip=True, before=True)),
        against="ours, before",
        bound=0.65,
    ),
}


def main() -> int:
    """Measures every comparison and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=COMPARISONS, default=list(COMPARISONS))
    parser.add_argument("--before", metavar="PYTHON", help="of another checkout's environment; else no packed rows")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="of a turn")
    parser.add_argument("--quick", action="store_true", help="the model `tiny`, short rows, two rounds of one step")
    parser.add_argument("--output", type=Path, default=RESULTS / "loops.md")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.steps = 2, 1
    chosen = [COMPARISONS[name] for name in options.only if name != "packed" or options.before]
    if options.quick:
        chosen = [replace(one, seq_length=one.seq_length // 8) for one in chosen]
    with tempfile.TemporaryDirectory(prefix="loops-") as folder:
        parameters = prepare(Path(folder), size="tiny" if options.quick else "small")
        measured = [(one, measure(one, Path(folder), options)) for one in chosen]
    write_result(options.output, report(measured, parameters, options))
    kept = [median(ratios(groups[0], opponent(one, groups), "wall")) <= one.bound for one, groups in measured]
    return 0 if options.quick or all(kept) else 1


def prepare(folder: Path, *, size: str) -> int:
    """Writes the model with its weights, and a corpus of documents of `DOCUMENT` tokens; returns the parameters."""
    import torch
    from tp2d_data import load_tokenizer
    from tp2d_train.setup.model import builtin_config
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(builtin_config(size), dtype=torch.float32)
    model.save_pretrained(folder / "model")
    tokenizer = load_tokenizer("builtin:small")
    words = [
        token[1:] for token in tokenizer.get_vocab() if token[0] == "Ġ" and token[1:].isascii() and token[1:].isalpha()
    ]
    draw = random.Random(0)
    documents = (" " + " ".join(draw.choices(sorted(words), k=DOCUMENT)) for _ in range(4096))
    (folder / "corpus.txt").write_text("\n".join(documents) + "\n", encoding="utf-8")
    return sum(p.numel() for p in model.parameters())


def measure(one: Comparison, folder: Path, options: argparse.Namespace) -> list[Group]:
    """The contenders after their turns."""
    with ExitStack() as stack:
        groups: list[Group] = []
        for entry in one.entries:
            groups.append(start(entry, one, folder, options))
            stack.callback(groups[-1].close)
        for group in groups:
            group.wait()
            group.take(UNCOUNTED - 1)
            counted = group.take(1, count=not group.name.endswith("before"))
            group.traffic = counted.traffic if counted else None
        for index in range(options.rounds):
            for group in groups if index % 2 == 0 else reversed(groups):
                if turn := group.take(options.steps):
                    group.turns.append(turn)
                    print(f"{one.title}, round {index + 1}, {group.name}: {turn.wall:.2f} s", flush=True)
    for group in (groups[0], opponent(one, groups)):
        if group.failure:
            raise SystemExit(f"{one.title}: {group.name} failed: {group.failure}")
    return groups


def start(entry: Entry, one: Comparison, folder: Path, options: argparse.Namespace) -> Group:
    """The ranks of a contender, which build their loop from here on."""
    dp, tp = entry.layout or (one.dp, one.tp)
    sizes = {"dp": dp, "tp": tp, "rows": one.dp // dp, "seq-length": one.seq_length}
    sizes["steps"] = UNCOUNTED + options.rounds * options.steps
    arguments = ["--contender", entry.kind, "--folder", str(folder)]
    arguments += [f"--{name}={value}" for name, value in sizes.items()]
    arguments += ["--clip"] * entry.clip + ["--packed"] * one.packed
    python = options.before if entry.before else sys.executable
    return Group(entry.name, python=python, options=arguments, size=dp * tp)


def opponent(one: Comparison, groups: Sequence[Group]) -> Group:
    """The contender that the bound is about."""
    return next(group for group in groups if group.name == one.against)


def report(
    measured: Sequence[tuple[Comparison, Sequence[Group]]], parameters: int, options: argparse.Namespace
) -> Iterator[str]:
    """The page of results."""
    yield "# A step side by side"
    yield ""
    yield f"`{shlex.join(['python', 'benchmarks/loops.py', *shown(sys.argv[1:])])}`, fp32, gloo, a thread a rank,"
    yield f"{parameters / 1e6:.1f}M parameters, {machine('torch', 'transformers')}."
    yield f"{options.rounds} rounds of {options.steps} steps, one row a dp rank."
    yield NOTES
    for one, groups in measured:
        yield from section(one, groups)


def shown(arguments: Sequence[str]) -> list[str]:
    """The arguments without paths of this machine."""
    return [argument if "/" not in argument else "PATH" for argument in arguments]


def section(one: Comparison, groups: Sequence[Group]) -> Iterator[str]:
    """One comparison's table and its bound."""
    yield from ("", f"## {one.title}", "")
    head = (
        "loop | wall, µs a token | CPU, µs a token | wall, ours to it | CPU, ours to it | memory, MiB | loss at the end"
    )
    head += " | furthest from the last row | collectives a step"
    yield from table(head, [row(group, one, groups) for group in groups])
    ratio = median(ratios(groups[0], opponent(one, groups), "wall"))
    verdict = "kept" if ratio <= one.bound else "missed"
    yield from ("", f"Bound: {one.bound} of `{one.against}`, wall time; {ratio:.3f}: {verdict}.")


def row(group: Group, one: Comparison, groups: Sequence[Group]) -> list[str]:
    """One contender's line."""
    if group.failure or not group.turns:
        return [group.name, f"cannot run: {group.failure}".replace("|", "/"), *[""] * 7]
    ours, reference = groups[0], groups[-1]
    tokens = one.dp * one.seq_length * len(group.turns[0].losses)
    times = [f"{group.median(what) / tokens * 1e6:.1f}" for what in ("wall", "cpu")]
    against = [spread(ratios(ours, group, what)) if group is not ours else "1" for what in ("wall", "cpu")]
    distance = max(abs(a - b) for a, b in zip(group.losses, reference.losses, strict=True))
    loss = [f"{group.losses[-1]:.6f}", f"{distance:.1e}" if group is not reference else ""]
    return [group.name, *times, *against, f"{group.turns[-1].memory / 2**20:.0f}", *loss, traffic(group)]


def spread(values: Sequence[float]) -> str:
    """The median of ratios, with the least and the most."""
    return f"{median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def traffic(group: Group) -> str:
    """Calls and MB of each kind of collective."""
    if group.traffic is None:
        return "not counted"
    kinds = [f"{calls} {kind} {size / 1e6:.1f} MB" for kind, (calls, size) in group.traffic.items()]
    return ", ".join(kinds) or "none"


if __name__ == "__main__":
    sys.exit(main())
