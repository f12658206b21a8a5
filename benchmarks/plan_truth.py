"""What `tp2d_fsdp2.estimate` says of a step against real steps on gloo meshes: memory by kind, and what is sent.

    python benchmarks/plan_truth.py    # 5 minutes

Each rank takes two steps. In the second one every tensor that an operator makes is counted for as long as it lives.
Weights, gradients and the optimizer's state are walked and must be equal to the byte, as must calls and bytes of all
collectives; the peak beside them must be within 10 %, or the script exits with 1. The peak is without the shares of the
gradients, which the plan counts by themselves. Layers are eager; the rank is the first, which has the most.
"""

import argparse
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from common import RESULTS, table, versions, write_result
from torch.distributed.tensor import DTensor
from tp2d_fsdp2 import FSDP2Engine, estimate
from tp2d_mesh import EngineSpec, Layout, Mesh, build_skeleton, resolve_precision
from tp2d_mesh.cost import Estimate, totals
from tp2d_mesh.cost.peak import peak_bytes
from tp2d_mesh.model.loss import head
from tp2d_mesh.testing import reuse_ranks, run_on_mesh
from tp2d_mesh.testing.counted import counted
from tp2d_mesh.testing.parity import random_batches, tiny_model

BOUND = 0.1
ROWS, SEQ, VOCABULARY, LAYERS = 2, 128, 1024, 4
SIZES: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 344,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "max_position_embeddings": SEQ,
    "vocab_size": VOCABULARY,
}
GEMMA = {"layer_types": ["sliding_attention"] * 3 + ["full_attention"], "sliding_window": 32}
FAMILIES = ("qwen2", "llama", "qwen3", "gemma3_text")
MESHES = (Layout(dp=2, tp=1), Layout(dp=1, tp=2), Layout(dp=2, tp=2))
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One step to estimate and to measure.

    Args:
        family: transformers' model type.
        layout: the mesh.
        options: of the spec that are not as usual: eager, and gathered for each micro-batch.
        accumulation: micro-batches.
        chunked: whether the head is computed in chunks of 128 tokens; else at once.
    """

    family: str
    layout: Layout
    options: tuple[tuple[str, Any], ...] = ()
    accumulation: int = 1
    chunked: bool = False

    def spec(self) -> EngineSpec:
        return EngineSpec(**{"compile": False, "gather_once": False, **dict(self.options)})

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.options) or "defaults"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Bytes of the first rank, and its collectives as `Counted.totals` gives them."""

    weights: int
    gradients: int
    optimizer: int
    peak: int
    sent: dict[tuple[str, str], tuple[int, int]]


def config_of(family: str) -> Any:
    """A small configuration."""
    more: dict[str, Any] = GEMMA if family == "gemma3_text" else {}
    return tiny_model(family, dtype=torch.float32, **{**SIZES, **more}).config


def estimated(cell: Cell) -> Estimate:
    """What the engine says beforehand."""
    spec = cell.spec()
    master = resolve_precision(spec.precision, CPU).master
    model = build_skeleton(config_of(cell.family), spec=spec, dtype=master)
    size = {"batch": ROWS, "seq": SEQ, "micro_batches": cell.accumulation}
    with patch.object(head, "CHUNK_BYTES", _chunk_bytes(cell)):
        return estimate(spec, model=model, layout=cell.layout, device=CPU, **size)


def _chunk_bytes(cell: Cell) -> int:
    return 1 if cell.chunked else head.CHUNK_BYTES


def measured(mesh: Mesh, cell: Cell) -> Measured:
    """Two real steps of one rank; the second is counted."""
    batches = random_batches(steps=cell.accumulation, rows=ROWS, seq_length=SEQ, vocab_size=VOCABULARY)
    with patch.object(head, "CHUNK_BYTES", _chunk_bytes(cell)):
        engine = FSDP2Engine(cell.spec(), config=config_of(cell.family), weights=None, mesh=mesh)
        gradients: list[int] = []
        engine.optimizer.register_step_pre_hook(lambda *_: gradients.append(_size(_gradients(engine))))
        with peak_bytes(apart=lambda: _gradients(engine)) as peak:
            engine.train_step(batches)
            before = peak.now()
            peak.restart()
            engine.train_step(batches)
        with counted(mesh) as seen:
            engine.train_step(batches)
        found = Measured(
            weights=_size([_local(p) for p in engine.model.parameters()]),
            gradients=gradients[-1],
            optimizer=_size([t for s in engine.optimizer.state.values() for t in s.values()]),
            peak=peak.bytes - before,
            sent=seen.totals(),
        )
        engine.close()
    return found


def _gradients(engine: Any) -> list[torch.Tensor]:
    return [_local(p.grad) for p in engine.parameters.values() if p.grad is not None]


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


def _size(tensors: Sequence[torch.Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def cells() -> Iterator[Cell]:
    """Every family, mesh, recomputation and accumulation; then the other options on one family and mesh."""
    for family, layout in itertools.product(FAMILIES, MESHES):
        for mode, accumulation in itertools.product(("none", "selective", "full"), (1, 4)):
            options = (("activation_checkpointing", mode),)
            yield Cell(family=family, layout=layout, options=options, accumulation=accumulation)
    for family, layout in itertools.product(("llama", "qwen2"), MESHES):
        yield Cell(family=family, layout=layout, chunked=True)
        for precision in ("bf16", "bf16-pure"):
            yield Cell(family=family, layout=layout, options=(("precision", precision),))
        for accumulation in (1, 4):
            once = (("gather_once", True),)
            yield Cell(family=family, layout=layout, options=once, accumulation=accumulation)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A cell, with what was said and what was found."""

    cell: Cell
    said: Estimate
    found: Measured

    @property
    def beside(self) -> int:
        """The estimated peak beside weights, gradients and optimizer."""
        memory = self.said.memory
        return memory.total - memory.weights - memory.gradients - memory.optimizer

    @property
    def error(self) -> float:
        """Of the peak, relative to what was measured."""
        return self.beside / self.found.peak - 1

    @property
    def exact(self) -> bool:
        """Whether states and collectives are equal to the byte."""
        memory, found = self.said.memory, self.found
        states = (memory.weights, memory.gradients, memory.optimizer)
        return states == (found.weights, found.gradients, found.optimizer) and totals(self.said.traffic) == found.sent

    @property
    def good(self) -> bool:
        """Whether all is as it must be."""
        return self.exact and abs(self.error) <= BOUND

    def texts(self) -> tuple[object, ...]:
        """The row of the table."""
        cell = self.cell
        where = (cell.family, cell.layout, cell, cell.accumulation, "yes" if cell.chunked else "no")
        peaks = (f"{self.beside:,}", f"{self.found.peak:,}", f"{100 * self.error:+.1f} %")
        return (*where, "equal" if self.exact else "different", *peaks)


def page(rows: Sequence[Row]) -> Iterator[str]:
    named = ", ".join(f"{name} {number}" for name, number in versions("torch", "transformers").items())
    worst = max(abs(row.error) for row in rows)
    yield from (
        "# Plans against real steps",
        "",
        f"`python benchmarks/plan_truth.py`, {named}. {LAYERS} layers, hidden size {SIZES['hidden_size']}, vocabulary "
        f"{VOCABULARY:,}, {ROWS} rows of {SEQ} tokens. Exact: weights, gradients, optimizer, calls and bytes of every "
        "collective, by kind and axis. Peak: bytes beside those, of the first rank.",
        "",
        f"{sum(row.good for row in rows)} of {len(rows)} cells are exact and within {100 * BOUND:.0f} %; the largest "
        f"error of a peak is {100 * worst:.1f} %.",
        "",
    )
    head_line = "family | mesh | options | micro-batches | chunks | exact | planned peak | measured | error"
    yield from table(head_line, (row.texts() for row in rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS / "plan_truth.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with reuse_ranks():
        for cell in cells():
            found = run_on_mesh(measured, cell, dp=cell.layout.dp, tp=cell.layout.tp)[0]
            rows.append(Row(cell=cell, said=estimated(cell), found=found))
            print(*rows[-1].texts(), flush=True)
    write_result(given.output, page(rows))
    if not all(row.good for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
