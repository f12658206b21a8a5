"""The most memory that head and loss take: whole logits against chunks, at tp 1, 2 and 8, beside the formula.

    python benchmarks/loss_memory.py

Counted on the meta device, forward and backward of one rank of a fake process group, so that the sizes of an 8B model
need no memory: every tensor that an operator makes, for as long as it lives. Not counted: the hidden states and the
head's weight, which exist before. What is counted includes the head's weight gradient, in float32 for chunks until
backward rounds it; the table's last columns leave out that gradient, once, in its larger dtype.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from common import RESULTS, table, versions, write_result
from tp2d_mesh import Mesh, chunk_range
from tp2d_mesh.cost.peak import Peak, peak_bytes
from tp2d_mesh.model.loss.head import head_loss_sum, logit_bytes, tokens_per_chunk
from tp2d_mesh.model.loss.logits import UNCHANGED, LogitTransform
from tp2d_mesh.model.loss.tokens import token_loss_sum
from tp2d_mesh.testing.counted import fake_mesh

MIB = 2**20


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Head and loss of one micro-batch of one row.

    Attributes:
        name: of the model.
        tokens: of the row.
        vocabulary: rows of the whole output embedding.
        hidden: size of the hidden states.
        dtype: of compute.
        transform: of the logits.
    """

    name: str
    tokens: int = 8192
    vocabulary: int = 128_256
    hidden: int = 4096
    dtype: torch.dtype = torch.bfloat16
    transform: LogitTransform = UNCHANGED

    def rows(self, mesh: Mesh) -> tuple[int, int]:
        return chunk_range(self.vocabulary, mesh.layout.tp, mesh.tp_rank)

    def chunk(self, tp: int) -> int:
        return tokens_per_chunk(
            self.tokens, vocabulary=-(-self.vocabulary // tp), dtype=self.dtype, transform=self.transform
        )


SHAPES = (
    Shape(name="8B"),
    Shape(name="8B, float32", dtype=torch.float32),
    Shape(name="9B, soft cap", vocabulary=256_000, hidden=3584, transform=LogitTransform(soft_cap=30.0)),
    Shape(name="1.7B, tied", vocabulary=151_936, hidden=2048),
    Shape(name="27M", tokens=1024, vocabulary=8192, hidden=512, dtype=torch.float32),
)
TP = (1, 2, 8)


def gradient_bytes(shape: Shape, tp: int) -> int:
    """The head's weight gradient on rank 0, in at least float32."""
    return -(-shape.vocabulary // tp) * shape.hidden * torch.promote_types(shape.dtype, torch.float32).itemsize


def formula(shape: Shape, tp: int) -> int:
    """Bytes beside that gradient, from `tp2d_mesh.model.loss.head`: the larger of forward's and backward's."""
    rows, wide = -(-shape.vocabulary // tp), torch.promote_types(shape.dtype, torch.float32)
    states = shape.tokens * shape.hidden
    forward = shape.chunk(tp) * rows * logit_bytes(shape.dtype, shape.transform) + wide.itemsize * states
    if wide == shape.dtype:
        return forward
    return max(forward, rows * shape.hidden * shape.dtype.itemsize + (wide.itemsize + shape.dtype.itemsize) * states)


def measured(shape: Shape, mesh: Mesh, *, chunks: bool) -> Peak:
    """The peak of one forward and backward on the meta device."""
    start, stop = shape.rows(mesh)
    size = {"dtype": shape.dtype, "device": "meta", "requires_grad": True}
    hidden = torch.empty(1, shape.tokens, shape.hidden, **size)
    weight = torch.empty(stop - start, shape.hidden, **size)
    labels = torch.zeros(1, shape.tokens, dtype=torch.int64, device="meta")
    place = {"rows": (start, stop), "group": mesh.tp_group}
    with peak_bytes() as peak:
        if chunks:
            whole = {"vocabulary": shape.vocabulary, "transform": shape.transform}
            loss = head_loss_sum(hidden, weight, labels, **place, **whole)
        else:
            loss = token_loss_sum(capped(hidden @ weight.t(), shape.transform), labels, **place)
        loss.backward()
    return peak


def capped(logits: torch.Tensor, transform: LogitTransform) -> torch.Tensor:
    """As transformers does it, step by step."""
    return logits if transform.soft_cap is None else torch.tanh(logits / transform.soft_cap) * transform.soft_cap


def rows() -> Iterator[tuple[object, ...]]:
    for tp in TP:
        with fake_mesh(tp=tp) as mesh:
            for shape in SHAPES:
                whole, chunks = (measured(shape, mesh, chunks=chunks).bytes for chunks in (False, True))
                gradient = gradient_bytes(shape, tp)
                where = (shape.name, f"{shape.tokens:,} x {shape.vocabulary:,}", tp, f"{shape.chunk(tp):,}")
                numbers = (whole, chunks, chunks - gradient, formula(shape, tp))
                yield (*where, *(f"{number / MIB:,.0f}" for number in numbers))


def page() -> Iterator[str]:
    named = ", ".join(f"{name} {number}" for name, number in versions("torch").items())
    yield from (
        "# The most memory that head and loss take",
        "",
        f"`python benchmarks/loss_memory.py`, {named}. MiB on one rank, forward and backward, beside the hidden states "
        "and the head's weight. Whole logits: the output embedding, then `token_loss_sum`; chunks: `head_loss_sum`. "
        "The last two columns are without the head's weight gradient in float32, the last one is computed.",
        "",
    )
    yield from table(
        "model | tokens x vocabulary | tp | tokens per chunk | whole logits | chunks | beside the gradient | formula",
        rows(),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS / "loss_memory.md")
    write_result(parser.parse_args().output, page())
