"""Rows of made-up tokens: documents whose lengths vary, tokens as unevenly distributed as words are."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from tp2d_mesh import IGNORED
from tp2d_mesh.model.attention.documents import Documents, documents_of

from gpu.shapes import SHAPES, Workload

Batch = dict[str, torch.Tensor]


class Packed(Batch):
    """A batch of packed rows, which knows its documents' ends, as a loader that packs them does."""

    documents: Documents


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What a step has, a mean over its batches.

    Args:
        positions: tokens that go through the model.
        labels: tokens that are predicted.
        attended: mean length of a token's document, which is what its attention costs.
    """

    positions: float
    labels: float
    attended: float


def batches(workload: Workload, *, steps: int, seed: int = 0) -> list[Batch]:
    """The batches of a run, the same for every contender, on the CPU.

    Returns:
        `steps` dicts of `(rows, seq_length)` int64: `input_ids`; `labels`, not shifted, -100 on a document's first
        token; and `position_ids` from 0 in each document, where rows are packed.
    """
    generator = torch.Generator().manual_seed(seed)
    return [_batch(workload, generator) for _ in range(steps)]


def counts(made: list[Batch]) -> Counts:
    """What these batches have."""
    lengths = [torch.tensor(document_lengths(batch), dtype=torch.float64) for batch in made]
    positions = sum(batch["labels"].numel() for batch in made)
    labels = sum(int((batch["labels"][:, 1:] != IGNORED).sum()) for batch in made)
    squares = sum(float(one.square().sum()) for one in lengths)
    return Counts(positions=positions / len(made), labels=labels / len(made), attended=squares / positions)


def document_lengths(batch: Batch) -> list[int]:
    """Tokens of each document, the rows laid end to end."""
    ids = batch["input_ids"]
    return batch.documents.ends.diff().tolist() if isinstance(batch, Packed) else [ids.shape[1]] * ids.shape[0]


def _batch(workload: Workload, generator: torch.Generator) -> Batch:
    shape = (workload.rows, workload.seq_length)
    vocabulary = SHAPES[workload.shape]["vocab_size"]
    # The n-th word is about 1/n as frequent as the first: a uniform exponent of the vocabulary's size.
    ids = (vocabulary ** torch.rand(shape, generator=generator, dtype=torch.float64)).long().clamp(max=vocabulary - 1)
    if workload.documents is None:
        return {"input_ids": ids, "labels": ids.clone()}
    rows = [list(_lengths(workload.documents, workload.seq_length, generator)) for _ in range(workload.rows)]
    positions = torch.stack([torch.cat([torch.arange(length) for length in row]) for row in rows])
    batch = Packed(input_ids=ids, labels=ids.masked_fill(positions == 0, IGNORED), position_ids=positions)
    batch.documents = documents_of(positions)
    return batch


def _lengths(mean: int, room: int, generator: torch.Generator) -> Iterator[int]:
    """Lengths of an exponential distribution that fill a row; the last document is cut at the row's end."""
    while room:
        drawn = -mean * math.log(1 - float(torch.rand((), generator=generator)))
        length = min(room, max(2, round(drawn)))
        yield length
        room -= length
