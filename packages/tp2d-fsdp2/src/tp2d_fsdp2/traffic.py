"""A model's optimizer step as `tp2d_mesh.cost` takes it: which collectives this engine calls, and their bytes.

    step = describe_step(model, plan=plan_model(model, tp=8), layout=Layout(dp=16, tp=8), ...)
    for traffic in step_traffic(step):
        print(traffic.purpose, traffic.axis, traffic.calls, traffic.size)

A skeleton on the meta device is enough, and no process group is needed.
"""

from collections.abc import Iterator
from typing import Any

from tp2d_mesh import Layout, Plan, Precision, chunk_range, tp_ranges
from tp2d_mesh.cost import Step, Unit
from tp2d_mesh.model.loss.head import tokens_per_chunk
from tp2d_mesh.model.loss.heads import head_of

from tp2d_fsdp2.sharding import outer_units


def describe_step(
    model: Any,
    *,
    plan: Plan,
    layout: Layout,
    precision: Precision,
    batch: int,
    seq: int,
    micro_batches: int = 1,
    gather_once: bool = False,
) -> Step:
    """One step of the FSDP2 engine on tp rank 0, which holds the most where tp does not divide a size.

    Right for layers of one attention and one MLP block, each of column- and row-wise projections. Whether layers are
    compiled or recomputed makes no difference.

    Args:
        model: the unsharded model.
        plan: its plan at `layout.tp`.
        layout: the dp x tp layout.
        precision: dtypes of masters, compute and reduction.
        batch: rows of a micro-batch.
        seq: tokens of a row.
        micro_batches: gradient accumulation steps.
        gather_once: whether weights are gathered and gradients reduced once per step.
    """
    shapes = {name: local_shape(p.shape, plan.parameters[name].tp_dim, layout) for name, p in model.named_parameters()}
    return Step(
        layout=layout,
        precision=precision,
        units=tuple(_units(model, plan, shapes)),
        layers=len(plan.layers),
        batch=batch,
        seq=seq,
        hidden=model.get_input_embeddings().weight.shape[1],
        micro_batches=micro_batches,
        gather_once=gather_once,
        loss_chunks=_loss_chunks(model, batch * seq, layout=layout, precision=precision),
        partial_gradients=tuple(shapes[name] for name, place in plan.parameters.items() if place.partial_gradient),
    )


def _loss_chunks(model: Any, tokens: int, *, layout: Layout, precision: Precision) -> int | None:
    head = head_of(model)
    if head is None:
        return None
    start, stop = chunk_range(model.get_output_embeddings().weight.shape[0], layout.tp, 0)
    at_once = tokens_per_chunk(tokens, vocabulary=stop - start, dtype=precision.compute, transform=head.transform)
    return -(-tokens // at_once)


def local_shape(shape: tuple[int, ...], tp_dim: int | None, layout: Layout) -> tuple[int, ...]:
    """The shape of tp rank 0's part of a parameter, which has the most where tp does not divide it."""
    if tp_dim is None:
        return tuple(shape)
    held = sum(stop - start for start, stop in tp_ranges(shape[tp_dim], tp=layout.tp, tp_rank=0))
    return (*shape[:tp_dim], held, *shape[tp_dim + 1 :])


def _units(model: Any, plan: Plan, shapes: dict[str, tuple[int, ...]]) -> Iterator[Unit]:
    """Each layer, the units beside them, and what is left. `named_parameters` knows a tied weight by its first name."""
    left = dict(shapes)
    units = [*(([layer], True) for layer in plan.layers), *((names, False) for names in outer_units(model, plan))]
    for modules, again in units:
        names = [name for name in left if any(name.startswith(f"{module}.") for module in modules)]
        if names:
            yield Unit(shapes=tuple(left.pop(name) for name in names), gathered_again=again)
    if left:
        yield Unit(shapes=tuple(left.values()), gathered_again=False)
