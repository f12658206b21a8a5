"""When in a step a rank holds the most, and what: the units of FSDP2 beside activations and logits.

FSDP2 holds a unit's weights whole while it computes. In forward it keeps the buffer of a gather until the next unit's
has been copied out; in backward the buffer of the next unit's gather is there while a unit computes. The input of a
reduce-scatter lives until the next unit's gradients are ready, from one micro-batch into the backward of the next one
too. A unit with the embedding in it, a tied one, has neither dropped its weights nor reduced its gradients before the
end of backward.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from tp2d_mesh.cost import Step, Unit
from tp2d_mesh.cost.activations import Activations

from tp2d_fsdp2.holdings import Holdings
from tp2d_fsdp2.planned.head_memory import HeadMemory


@dataclass(frozen=True, kw_only=True)
class Moment:
    """Bytes beside the states at one time of a step; the kinds are those of `tp2d_mesh.cost.Memory`."""

    gathered: int = 0
    activations: int = 0
    logits: int = 0
    buffers: int = 0

    @property
    def total(self) -> int:
        return self.gathered + self.activations + self.logits + self.buffers


@dataclass(frozen=True, kw_only=True)
class _Unit:
    """Bytes of one unit: whole weights, the buffer of their gather, whole gradients, the reduce-scatter's input."""

    weights: int = 0
    gather: int = 0
    gradients: int = 0
    reduce: int = 0


def largest(step: Step, *, layers: Activations, head: HeadMemory, tied: bool, held: Holdings) -> Moment:
    """The moment with the most beside the states.

    Args:
        step: the step.
        layers: activations of its layers.
        head: memory of its head and loss.
        tied: whether the output embedding is the input embedding.
        held: what the rank holds.
    """
    if not held.sharded:
        return max(_plain(layers, head), key=lambda moment: moment.total)
    units = [_unit(step, unit, kept=step.gather_once) for unit in step.units]
    whole = _whole(step, held) if step.gather_once else 0
    moments = _moments(step, units, layers=layers, head=head, tied=tied, hidden=_hidden(step))
    found = max(moments, key=lambda moment: moment.total)
    return Moment(
        gathered=found.gathered + whole, activations=found.activations, logits=found.logits, buffers=found.buffers
    )


def _whole(step: Step, held: Holdings) -> int:
    """Weights that stay gathered; with them, over several micro-batches, gradients that are not reduced yet."""
    if step.micro_batches > 1:
        return held.whole
    return sum(unit.elements(dp=step.layout.dp) for unit in step.units) * step.precision.compute.itemsize


def _unit(step: Step, unit: Unit, *, kept: bool) -> _Unit:
    """Where what was gathered stays, its bytes are counted elsewhere, and nothing is gathered in backward."""
    dp, precision = step.layout.dp, step.precision
    padded = unit.elements(dp=dp)
    weights = 0 if kept else padded * precision.compute.itemsize
    return _Unit(
        weights=weights,
        gather=weights if dp > 1 else 0,
        gradients=sum(map(math.prod, unit.shapes)) * precision.compute.itemsize,
        reduce=padded * precision.reduce.itemsize,
    )


def _hidden(step: Step) -> int:
    return step.batch * step.seq * step.hidden * step.precision.compute.itemsize


def _plain(layers: Activations, head: HeadMemory) -> Iterator[Moment]:
    yield Moment(activations=layers.kept, logits=max(head.forward, head.backward))
    yield Moment(activations=layers.kept + layers.working)


def _moments(
    step: Step, units: list[_Unit], *, layers: Activations, head: HeadMemory, tied: bool, hidden: int
) -> Iterator[Moment]:
    outer = units[step.layers :]
    last, first = outer[-1], _Unit() if tied else outer[0]
    layer, before = units[step.layers - 1], units[step.layers - 2] if step.layers > 1 else first
    stays = last.weights + last.gradients if tied else 0
    end = last if tied else first
    carried = end.reduce if step.micro_batches > 1 and not step.gather_once else 0
    buffer = (layer if tied else last).gather if head.chunked else 0
    yield Moment(gathered=last.weights, activations=layers.kept, logits=head.forward, buffers=buffer + carried)
    yield Moment(gathered=last.weights, activations=layers.kept, logits=head.backward, buffers=layer.gather + carried)
    yield Moment(
        gathered=last.gradients, activations=layers.kept + hidden, buffers=layer.gather + (0 if tied else last.reduce)
    )
    yield Moment(
        gathered=layer.weights + stays,
        activations=layers.kept + layers.working,
        buffers=before.gather + (carried if tied else last.reduce),
    )
    less = layers.kept - layers.layer
    yield Moment(gathered=layer.gradients + stays, activations=less + 2 * hidden, buffers=before.gather + layer.reduce)
    yield Moment(
        gathered=before.weights + stays, activations=less + layers.working, buffers=before.gather + layer.reduce
    )
    yield Moment(gathered=end.gradients, activations=hidden, buffers=end.reduce)
