"""What a rank holds from step to step, and whole weights and gradients beside it; the rule of `gather_once=None`.

All from shapes: a skeleton is enough, and every rank finds the same numbers, those of tp rank 0 of dp rank 0.
"""

import math
from dataclasses import dataclass
from typing import Any

from tp2d_mesh import OPTIMIZERS, Layout, Plan, Precision
from tp2d_mesh.cost import shard_elements

from tp2d_fsdp2.sharding import is_sharded
from tp2d_fsdp2.traffic import local_shape

_COUNT_BYTES = 4
"""AdamW counts the steps of each parameter, in float32."""


@dataclass(frozen=True, kw_only=True)
class Holdings:
    """Bytes of one rank.

    Args:
        weights: its share of the masters.
        gradients: its share of the gradients.
        optimizer: the moments of its share, and their counts of steps.
        whole: weights in the compute dtype and gradients in the reduce dtype, of all of its tp rank's parameters.
        sharded: whether there are shares of FSDP2 at all, or one dp rank computes with its masters.
    """

    weights: int
    gradients: int
    optimizer: int
    whole: int
    sharded: bool

    @property
    def states(self) -> int:
        """What it holds between steps, and the gradients."""
        return self.weights + self.gradients + self.optimizer


def holdings(model: Any, *, plan: Plan, layout: Layout, precision: Precision, optimizer: str) -> Holdings:
    """What the first rank holds, the one with the most.

    Args:
        model: the unsharded model.
        plan: its plan at `layout.tp`.
        layout: the dp x tp layout.
        precision: dtypes of masters, compute and reduction.
        optimizer: a key of `OPTIMIZERS`.
    """
    shapes = [local_shape(p.shape, plan.parameters[name].tp_dim, layout) for name, p in model.named_parameters()]
    share = sum(shard_elements(shape, dp=layout.dp) for shape in shapes) * precision.master.itemsize
    moments = OPTIMIZERS[optimizer]
    counts = _COUNT_BYTES * len(shapes) if moments else 0
    whole = sum(map(math.prod, shapes)) * (precision.compute.itemsize + precision.reduce.itemsize)
    return Holdings(
        weights=share,
        gradients=share,
        optimizer=len(moments) * share + counts,
        whole=whole,
        sharded=is_sharded(layout, precision),
    )


def fits_gathered(held: Holdings, *, memory: float) -> bool:
    """Whether weights stay gathered and gradients whole for a whole step: the rule of `gather_once=None`.

    They do where both, beside the rank's states, take at most half of its device's memory. The other half is for
    activations, logits and buffers, which depend on the batch: a rule that reads only sizes of the model and the device
    decides alike on every rank, and again when a run is resumed with other rows.

    Args:
        held: of this engine's model.
        memory: bytes of a rank's device, the least of all ranks.
    """
    return held.whole + held.states <= memory / 2
