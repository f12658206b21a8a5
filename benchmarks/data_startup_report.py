"""The table of data_startup.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prose import machine

RATIO_BOUND, SECOND_START_BOUND, MEMORY_BOUND = 1.3, 3.0, 300  # times, seconds, MB (10**6 bytes)
Figures = dict[str, Any]
PACKAGES = ("tokenizers", "datasets", "transformers", "torch")
MEMORY = {"first": "peak", "second": "private"}
NAMES = {"bare": "bare `tokenizers` loop", "first": "first start", "second": "second start", "imports": "imports"}


def report(figures: Figures, *, command: str, rows: str, batch_sizes: Sequence[int], batches: int) -> tuple[str, bool]:
    """The table, and whether every bound is kept.

    Args:
        figures: of every part, by its name.
        command: that measured them.
        rows: their length and how many make a batch, in words.
        batch_sizes: tried for the bare loop.
        batches: taken before memory was read.
    """
    corpus, bare, first, second = (figures[name] for name in ("prepare", "bare", "first", "second"))
    above = {name: (figures[name][key] - figures["imports"]["private"]) / 1e6 for name, key in MEMORY.items()}
    checks = [
        ("first start / bare, wall", first["work"] / bare["work"], RATIO_BOUND, ""),
        ("second start without imports", second["work"], SECOND_START_BOUND, " s"),
        ("private memory above the imports, highest in the first start", above["first"], MEMORY_BOUND, " MB"),
        ("private memory above the imports, after 50 batches", above["second"], MEMORY_BOUND, " MB"),
    ]
    imports, made = figures["imports"], first["statistics"]
    lines = [
        "# From the start to the first batch",
        "",
        f"`{command}`, {machine(*PACKAGES)}.",
        f"{corpus['bytes'] / 1e6:,.0f} MB of text in {corpus['documents']:,} documents, made of {figures['made_of']};",
        f"a document has {corpus['median']} bytes (median), {corpus['high']:,} (99 %), {corpus['longest']:,} (most).",
        f"{made['tokens']:,} tokens in {made['rows']:,} rows of {rows}. The script says what is measured.",
        "",
        "| | wall s | processor s | MB of text per s |",
        "|---|---|---|---|",
        *(_times(name, figures[key], corpus["bytes"]) for key, name in NAMES.items()),
        "",
        f"Bare: batches of {figures['batch_size']} documents, the best of {', '.join(map(str, batch_sizes))}.",
        f"First start / bare in processor seconds: {first['processor'] / bare['processor']:.2f}.",
        f"Second start with the interpreter and all imports: {second['since_start']:.2f} s to the first batch, of",
        f"which `import torch, datasets, transformers` took {second['imports']:.2f} s.",
        f"Private memory of the imports alone: {imports['private'] / 1e6:.0f} MB. Mapped pages of files after",
        f"{batches} batches: {second['mapped'] / 1e6:.0f} MB, of the imports alone {imports['mapped'] / 1e6:.0f} MB.",
        "",
        "| bound | measured | at most | |",
        "|---|---|---|---|",
        *(
            f"| {name} | {value:.2f}{unit} | {most:g}{unit} | {_verdict(value, most)} |"
            for name, value, most, unit in checks
        ),
    ]
    return "\n".join(lines) + "\n", all(value <= most for _, value, most, _ in checks)


def _times(name: str, figures: Figures, size: int) -> str:
    speed = f"{size / 1e6 / figures['work']:.1f}" if figures["work"] and name in (NAMES["bare"], NAMES["first"]) else ""
    return f"| {name} | {figures['work']:.2f} | {figures['processor']:.2f} | {speed} |"


def _verdict(value: float, most: float) -> str:
    return "kept" if value <= most else "missed"
