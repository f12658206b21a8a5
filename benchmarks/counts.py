"""The collectives of one FSDP2 step, counted in one process over a fake group, against `tp2d_mesh.cost`.

    python benchmarks/counts.py           # every cell: meshes from 1x1 to 128x8, families, every option
    python benchmarks/counts.py --quick   # three meshes, without compilation

A cell is one model, mesh and choice of options. This process is rank 0 of the mesh: it builds the engine, takes a step
and counts calls and bytes of each kind over each axis. They must equal the formulas' numbers, or it exits with 1.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from common import RESULTS, machine, table, write_result
from tp2d_fsdp2 import FSDP2Engine
from tp2d_fsdp2.traffic import describe_step
from tp2d_mesh import RECOMPUTATION, EngineSpec, Layout, build_skeleton, plan_model, resolve_precision
from tp2d_mesh.cost import step_traffic, totals
from tp2d_mesh.model.loss import head
from tp2d_mesh.testing.counted import Counted, counted, fake_mesh
from tp2d_mesh.testing.parity import random_batches, tiny_model

MESHES = tuple(Layout(dp=dp, tp=tp) for dp in (1, 2, 8, 128) for tp in (1, 2, 8))
FEW = (Layout(dp=1, tp=1), Layout(dp=2, tp=2), Layout(dp=128, tp=8))
FAMILIES = {"llama": "llama", "qwen2": "qwen2, tied", "qwen3": "qwen3, partial gradients"}
HIDDEN, VOCABULARY, ROWS = 32, 99, 2
SIZES = {"num_attention_heads": 8, "num_key_value_heads": 8, "max_position_embeddings": 128}
CPU = torch.device("cpu")

Totals = dict[tuple[str, str], tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One step to count.

    Args:
        family: transformers' model type.
        layout: the mesh.
        spec: precision, recomputation, compilation and gathering.
        accumulation: micro-batches.
        layers: decoder layers.
        seq: tokens of a row; with 2 rows of 128 the head can be computed in chunks of 128 tokens.
        chunked: whether it is.
    """

    family: str
    layout: Layout
    spec: EngineSpec = field(default_factory=lambda: EngineSpec(compile=False, gather_once=False))
    accumulation: int = 1
    layers: int = 3
    seq: int = 16
    chunked: bool = False

    def __str__(self) -> str:
        spec = self.spec
        options = [
            f"activation_checkpointing={spec.activation_checkpointing}",
            f"compile={spec.compile_backend if spec.compile else 'off'}",
            f"precision={spec.precision}",
            f"accumulation={self.accumulation}",
            f"gather_once={spec.gather_once}",
            *(["head in chunks"] if self.chunked else []),
        ]
        return f"{self.family}, {self.layers} layers, {self.layout.dp}x{self.layout.tp}: {', '.join(options)}"


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a cell's step called, and what the formulas say."""

    cell: Cell
    seen: Counted
    expected: Totals

    @property
    def differences(self) -> list[str]:
        """What differs, a line each."""
        found = self.seen.totals()
        return [
            f"{self.cell}: {kind} over {axis}: {_amount(found.get((kind, axis)))}, "
            f"by the formula {_amount(self.expected.get((kind, axis)))}"
            for kind, axis in sorted(found.keys() | self.expected.keys())
            if found.get((kind, axis)) != self.expected.get((kind, axis))
        ]

    @property
    def activation_sums(self) -> int:
        """All-reduces of a micro-batch's activations."""
        return self.seen.calls("all_reduce", axis="tp", shape=(ROWS, self.cell.seq, HIDDEN))


def _amount(total: tuple[int, int] | None) -> str:
    return "none" if total is None else f"{total[0]} calls, {total[1]:,} bytes"


@cache
def config_of(family: str, layers: int) -> Any:
    """A tiny configuration; vocabulary and MLP do not divide by tp."""
    more = {"hidden_size": HIDDEN, "vocab_size": VOCABULARY, "num_hidden_layers": layers}
    return tiny_model(family, dtype=torch.float32, **SIZES, **more).config


def run(cell: Cell) -> Result:
    """Build the cell's engine, take a step, and count."""
    config = config_of(cell.family, cell.layers)
    batches = random_batches(steps=cell.accumulation, rows=ROWS, seq_length=cell.seq, vocab_size=VOCABULARY)
    with (
        fake_mesh(dp=cell.layout.dp, tp=cell.layout.tp) as mesh,
        patch.object(head, "CHUNK_BYTES", 1 if cell.chunked else head.CHUNK_BYTES),
    ):
        engine = FSDP2Engine(cell.spec, config=config, weights=None, mesh=mesh)
        with counted(mesh) as seen:
            engine.train_step(batches)
        engine.close()
        expected = by_formula(cell, config)
    torch._dynamo.reset()  # or the graphs of one engine count against the next one's limit
    return Result(cell=cell, seen=seen, expected=expected)


def by_formula(cell: Cell, config: Any) -> Totals:
    """Calls and bytes by kind and axis, from the model's shapes alone."""
    model = build_skeleton(config, spec=cell.spec, dtype=torch.float32)
    step = describe_step(
        model,
        plan=plan_model(model, tp=cell.layout.tp),
        layout=cell.layout,
        precision=resolve_precision(cell.spec.precision, CPU),
        batch=ROWS,
        seq=cell.seq,
        micro_batches=cell.accumulation,
        gather_once=bool(cell.spec.gather_once),
    )
    return totals(step_traffic(step))


def cells(*, quick: bool) -> Iterator[Cell]:
    """Eager with all options on all meshes; compiled, and with the head in chunks, on some."""
    steps = ((1, False), (4, False), (4, True))
    options = tuple(itertools.product(FAMILIES, ("fp32", "bf16"), RECOMPUTATION, steps))
    for layout in FEW if quick else MESHES:
        for family, precision, recomputation, (accumulation, once) in options:
            spec = EngineSpec(
                precision=precision, activation_checkpointing=recomputation, compile=False, gather_once=once
            )
            cell = Cell(family=family, layout=layout, spec=spec, accumulation=accumulation)
            yield cell
            if layout in FEW and recomputation == "none":
                yield replace(cell, seq=128, chunked=True)
            if layout in FEW[1:] and (accumulation, once) != (4, False) and not quick:
                yield replace(cell, spec=replace(spec, compile=True, compile_backend="aot_eager"))


def sums_per_layer(*, quick: bool) -> Iterator[tuple[str, str, float]]:
    """`(compile, recomputation, activation all-reduces that one more layer adds)` on 1x2."""
    for compiled, recomputation in itertools.product((False,) if quick else (False, True), RECOMPUTATION):
        spec = EngineSpec(
            activation_checkpointing=recomputation, compile=compiled, compile_backend="aot_eager", gather_once=False
        )
        two, four = (
            run(Cell(family="llama", layout=Layout(dp=1, tp=2), spec=spec, layers=layers)).activation_sums
            for layers in (2, 4)
        )
        yield "aot_eager" if compiled else "off", recomputation, (four - two) / 2


def page(results: Sequence[Result], layers: Sequence[tuple[str, str, float]]) -> Iterator[str]:
    """The lines of the table."""
    differing = [line for result in results for line in result.differences]
    unequal = sum(bool(result.differences) for result in results)
    yield "# Collectives of one step, counted, against `tp2d_mesh.cost`"
    yield ""
    yield f"`python benchmarks/counts.py`: {machine('torch', 'transformers')}."
    yield ""
    yield f"{len(results)} cells, {unequal} of them with calls or bytes that differ from the formulas."
    yield from ["", *(f"- {line}" for line in differing)] if differing else ()
    yield from ("", "## Activation all-reduces over tp per layer and micro-batch (llama, 1x2)", "")
    yield from table("compile | activation_checkpointing | all-reduces", [(a, b, f"{n:g}") for a, b, n in layers])
    yield from ("", "## Gathers and reductions of a step of 4 micro-batches (3 layers, 2x2, fp32)", "")
    yield from table("model | units | gather_once | gathers | reductions", gather_rows(results))
    yield from ("", "## Calls and bytes of whole tensors of a step, by mesh (llama, fp32, 1 micro-batch of 2 x 16)", "")
    ways = [(kind, axis) for axis in ("tp", "dp", "world") for kind in ("all_reduce", "all_gather", "reduce_scatter")]
    ways = [way for way in ways if any(way in result.expected for result in results)]
    columns = " | ".join(f"{kind} {axis}" for kind, axis in ways)
    yield from table(f"mesh | {columns} | calls over one rank", mesh_rows(results, ways))


def plain(results: Sequence[Result], **changes: Any) -> Iterator[Result]:
    """The results in fp32 without recomputation, compilation and chunks, of cells with these values."""
    for result in results:
        cell, spec = result.cell, result.cell.spec
        if cell.chunked or spec.compile or (spec.precision, spec.activation_checkpointing) != ("fp32", "none"):
            continue
        if all(getattr(cell, name) == value for name, value in changes.items()):
            yield result


def gather_rows(results: Sequence[Result]) -> Iterator[tuple[object, ...]]:
    """A row per model, with and without gathering once."""
    for result in plain(results, layout=Layout(dp=2, tp=2), accumulation=4):
        units = result.cell.layers + (1 if result.cell.family == "qwen2" else 2)
        counts = (result.seen.calls(kind, axis="dp") for kind in ("all_gather", "reduce_scatter"))
        yield FAMILIES[result.cell.family], units, result.cell.spec.gather_once, *counts


def mesh_rows(results: Sequence[Result], ways: Sequence[tuple[str, str]]) -> Iterator[tuple[object, ...]]:
    """A row per mesh."""
    for result in plain(results, family="llama", accumulation=1):
        found, layout = result.seen.totals(), result.cell.layout
        amounts = (f"{found[way][0]}: {found[way][1]:,}" if way in found else "" for way in ways)
        alone = sum(c.ranks == 1 for c in result.seen.collectives)
        yield f"{layout.dp}x{layout.tp}", *amounts, alone


def main() -> None:
    parser = argparse.ArgumentParser(description="Collectives of one step against the formulas.")
    parser.add_argument("--quick", action="store_true", help="three meshes, without compilation")
    parser.add_argument("--output", type=Path, default=RESULTS / "counts.md", help="where the table goes")
    chosen = parser.parse_args()
    start, results = time.perf_counter(), []
    for cell in cells(quick=chosen.quick):
        results.append(run(cell))
        for line in results[-1].differences:
            print(line, flush=True)
    write_result(chosen.output, page(results, list(sums_per_layer(quick=chosen.quick))))
    print(f"{time.perf_counter() - start:.0f} s")
    sys.exit(any(result.differences for result in results))


if __name__ == "__main__":
    main()
