"""The collectives of one optimizer step, by purpose: how many, over which axis, how many bytes.

A `Step` is a plain description, so a planner needs no process group and no model. What `step_traffic` says of it is
what the FSDP2 engine calls, to the byte: `benchmarks/counts.py` counts both, on many meshes and with every option.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tp2d_mesh.cost.rings import all_gather_bytes, all_reduce_bytes, reduce_scatter_bytes
from tp2d_mesh.layout import Layout
from tp2d_mesh.precision import Precision

Shape = tuple[int, ...]

_LAYER_SUMS = 4
_SENT = {"all_reduce": all_reduce_bytes, "all_gather": all_gather_bytes, "reduce_scatter": reduce_scatter_bytes}


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Parameters that are gathered and reduced over dp together.

    Args:
        shapes: of each parameter, as one tp rank holds it; a tied one once.
        gathered_again: whether backward gathers it a second time. Layers are. An embedding's backward does not read
            the weights, and the head's follows its forward at once.
    """

    shapes: tuple[Shape, ...]
    gathered_again: bool

    def elements(self, *, dp: int) -> int:
        """Elements that travel: FSDP2 cuts each parameter into dp chunks of rows, the last ones padded to the first."""
        return sum(dp * shard_elements(shape, dp=dp) for shape in self.shapes)


@dataclass(frozen=True, kw_only=True)
class Step:
    """One optimizer step, as one rank sees it. Ranks differ where tp does not divide a size; rank 0 has the most.

    Args:
        layout: the dp x tp layout.
        precision: dtypes of masters, compute and reduction.
        units: everything that is sharded over dp.
        layers: decoder layers, each one attention and one MLP block.
        batch: rows of a micro-batch.
        seq: tokens of a row.
        hidden: the model's hidden size.
        micro_batches: gradient accumulation steps.
        gather_once: whether units are gathered and reduced once per step, not once per micro-batch.
        loss_chunks: in how many pieces the head and the loss of a micro-batch are computed; None: from whole logits.
        partial_gradients: shapes of the parameters that every tp rank holds whole and sees only its heads' gradient of.
    """

    layout: Layout
    precision: Precision
    units: tuple[Unit, ...]
    layers: int
    batch: int
    seq: int
    hidden: int
    micro_batches: int = 1
    gather_once: bool = False
    loss_chunks: int | None = 1
    partial_gradients: tuple[Shape, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """The collectives of one step that serve one purpose.

    Args:
        purpose: what is sent.
        kind: all_reduce, all_gather or reduce_scatter.
        axis: dp, tp or world.
        ranks: the size of the group, at least 2.
        calls: how many collectives.
        size: bytes of their whole tensors together.
    """

    purpose: str
    kind: str
    axis: str
    ranks: int
    calls: int
    size: int

    @property
    def sent(self) -> float:
        """Bytes that one rank sends, over a ring."""
        return _SENT[self.kind](self.size, ranks=self.ranks)


def step_traffic(step: Step) -> tuple[Traffic, ...]:
    """Every collective of a step, by purpose; none over an axis of one rank.

    Recomputation of layers in backward adds none: the sums of forward are kept.
    """
    found = (*_over_tp(step), *_over_dp(step), *_numbers(step))
    return tuple(traffic for traffic in found if traffic.ranks > 1 and traffic.calls)


def totals(traffic: Iterable[Traffic]) -> dict[tuple[str, str], tuple[int, int]]:
    """`(kind, axis) -> (calls, size)`, as a link of each axis sees them."""
    found: dict[tuple[str, str], tuple[int, int]] = {}
    for one in traffic:
        calls, size = found.get((one.kind, one.axis), (0, 0))
        found[one.kind, one.axis] = (calls + one.calls, size + one.size)
    return found


def shard_elements(shape: Shape, *, dp: int) -> int:
    """Elements of the first dp rank's shard of a parameter, the largest: `ceil(rows / dp)` rows."""
    return -(-shape[0] // dp) * math.prod(shape[1:])


def tp_layer_bytes(*, batch: int, seq: int, hidden: int, itemsize: int, tp: int) -> float:
    """Bytes a rank sends for one transformer layer of one micro-batch, forward and backward.

    Attention and MLP each all-reduce the activations once forward (after the row-wise projection) and once backward
    (before the column-wise one): four all-reduces of `batch * seq * hidden * itemsize` bytes. Recomputation in
    backward adds none: the sums of forward are kept.

    Args:
        batch: rows of the micro-batch.
        seq: tokens of a row.
        hidden: the model's hidden size.
        itemsize: bytes of an element of the activations (2 in bf16).
        tp: tensor-parallel size.
    """
    return _LAYER_SUMS * all_reduce_bytes(batch * seq * hidden * itemsize, ranks=tp)


def ddp_step_bytes(*, gradient_bytes: float, dp: int) -> float:
    """Bytes a rank sends over dp in one optimizer step of DDP or ZeRO-1/2: one all-reduce of the gradients.

    ZeRO-1/2 reduce-scatters the gradients and gathers the updated parameters. That is as much, if both have one dtype.

    Args:
        gradient_bytes: size of the gradients that the dp group shares: all of the model's divided by tp.
        dp: data-parallel size.
    """
    return all_reduce_bytes(gradient_bytes, ranks=dp)


def _over_tp(step: Step) -> Iterator[Traffic]:
    tokens = step.batch * step.seq
    activation = tokens * step.hidden * step.precision.compute.itemsize
    sums = (("layers' activations", _LAYER_SUMS * step.layers), ("embedding's output", 1), ("head's input gradient", 1))
    for purpose, times in sums:
        calls = times * step.micro_batches
        yield _all_reduce(step, purpose, "tp", calls=calls, size=calls * activation)
    yield _token_losses(step, numbers=3 * tokens)
    elements = sum(shard_elements(shape, dp=step.layout.dp) for shape in step.partial_gradients)
    size = elements * step.precision.master.itemsize
    yield _all_reduce(step, "partial gradients", "tp", calls=1 if elements else 0, size=size)


def _token_losses(step: Step, *, numbers: int) -> Traffic:
    """Of each token its largest logit, the sum of the exponentials and the label's logit."""
    size = numbers * step.micro_batches * _wide(step)
    if step.loss_chunks is None:  # the largest first, then the others
        return _all_reduce(step, "loss of tokens", "tp", calls=2 * step.micro_batches, size=size)
    return Traffic(
        purpose="loss of tokens",
        kind="all_gather",
        axis="tp",
        ranks=step.layout.tp,
        calls=step.loss_chunks * step.micro_batches,
        size=step.layout.tp * size,
    )


def _over_dp(step: Step) -> Iterator[Traffic]:
    dp, turns = step.layout.dp, 1 if step.gather_once else step.micro_batches
    gathers = [1 if step.gather_once else turns * (1 + unit.gathered_again) for unit in step.units]
    sizes = [unit.elements(dp=dp) for unit in step.units]
    yield Traffic(
        purpose="weights",
        kind="all_gather",
        axis="dp",
        ranks=dp,
        calls=sum(gathers),
        size=sum(n * size for n, size in zip(gathers, sizes, strict=True)) * step.precision.compute.itemsize,
    )
    yield Traffic(
        purpose="gradients",
        kind="reduce_scatter",
        axis="dp",
        ranks=dp,
        calls=turns * len(sizes),
        size=turns * sum(sizes) * step.precision.reduce.itemsize,
    )


def _numbers(step: Step) -> Iterator[Traffic]:
    yield _all_reduce(step, "tokens and positions", "dp", calls=1, size=2 * 8)
    yield _all_reduce(step, "norm and loss", "world", calls=1, size=2 * _wide(step))


def _wide(step: Step) -> int:
    """Bytes of a number of the loss: float32 at least."""
    return max(4, step.precision.compute.itemsize)


def _all_reduce(step: Step, purpose: str, axis: str, *, calls: int, size: int) -> Traffic:
    ranks = {"dp": step.layout.dp, "tp": step.layout.tp, "world": step.layout.world_size}[axis]
    return Traffic(purpose=purpose, kind="all_reduce", axis=axis, ranks=ranks, calls=calls, size=size)
