"""The whole page of a run, as far as it has come: Markdown, and JSON beside it."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common import machine, table, versions

from gpu.check import BOUND, ParityRow
from gpu.machine import Machine
from gpu.measure import How
from gpu.report import PUBLISHED, Result, as_json, failures, workload_lines

PACKAGES = ("torch", "transformers", "tp2d-mesh", "tp2d-fsdp2")


@dataclass(kw_only=True)
class Page:
    """What a run has found so far.

    Args:
        title: the command.
        output: where the page goes, with its figures as JSON beside it; None: nowhere.
    """

    title: str
    output: Path | None
    machine: Machine | None = None
    how: How | None = None
    parity: Sequence[ParityRow] = ()
    left_out: list[str] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The page."""
        lines = ["# One device, side by side", "", f"`{self.title}`", ""]
        if self.machine is not None and self.how is not None:
            lines += [*_machine_lines(self.machine, self.how), ""]
            lines += [*table("published by | what | on | figure", PUBLISHED), ""]
        if self.parity:
            head = "rows | mesh (dp x tp) | gradient, float64 | weight, float64"
            rows = [(row.kind, row.mesh, row.gradient, row.weight) for row in self.parity]
            lines += ["## Parity with one plain process on the CPU", "", *table(head, rows), ""]
        if self.machine is not None:
            lines += [line for result in self.results for line in workload_lines(result, self.machine)]
        lines += [f"Left out, {line}." for line in self.left_out]
        return [*lines, *([f"- {line}" for line in self.wrong()] or ["Everything is within its bounds."])]

    def wrong(self) -> list[str]:
        """What is not as it must be."""
        found = [
            f"parity, {row.kind} rows on {row.mesh}: {row.gradient} {row.weight}, bound {BOUND:.0e}"
            for row in self.parity
            if not row.good
        ]
        if self.how is None:
            return found
        # On the CPU every loop must run, and speed says nothing.
        tiny = self.how.device == "cpu"
        failed = [f"{row.contender.name}: {row.figures}" for result in self.results for row in result.failed()]
        return [*found, *(failed if tiny else []), *failures(self.results, half=self.how.half, judged=not tiny)]

    def write(self) -> None:
        """Writes the page and its figures."""
        if self.output is None:
            return
        self.output.parent.mkdir(parents=True, exist_ok=True)
        self.output.write_text("\n".join(self.lines()) + "\n", encoding="utf-8")
        record: dict[str, Any] = {
            "command": self.title,
            "machine": None if self.machine is None else vars(self.machine),
            "versions": versions(*PACKAGES),
            "parity": [vars(row) for row in self.parity],
            "workloads": [as_json(result) for result in self.results],
            "wrong": self.wrong(),
        }
        self.output.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _machine_lines(what: Machine, how: How) -> list[str]:
    facts = "".join(f", {name} {value}" for name, value in what.facts.items() if name != "name")
    nominal = "" if what.nominal_flops is None else f" of {what.nominal_flops / 1e12:.0f} on its data sheet"
    return [
        f"Device: {what.name}{facts}. Host: {machine(*PACKAGES)}.",
        f"Ceilings measured here: a product of {what.side} x {what.side} at {what.product_flops / 1e12:.3g} "
        f"TFLOP/s{nominal}, a copy at {what.copy_bytes / 1e9:.3g} GB/s, read and written.",
        f"Each loop: {how.warmup} steps to warm up, {how.steps} timed, {how.profiled} profiled, in "
        f"{'bf16 with fp32 weights' if how.half else 'fp32'}, compiled by {how.backend}.",
    ]
