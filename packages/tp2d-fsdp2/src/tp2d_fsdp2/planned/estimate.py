"""What an optimizer step of the FSDP2 engine needs of a rank, before it runs: memory by kind, and its collectives.

    model = build_skeleton(config, spec=spec, dtype=torch.float32)
    found = estimate(spec, model=model, layout=Layout(dp=8, tp=8), device=torch.device("cuda"), batch=1, seq=8192)
    print(found.memory.total)

Weights, gradients, optimizer and collectives follow from shapes and are exact. Activations are traced: two or three
layers of the model, split as they will be, run on tensors without values (`tp2d_mesh.cost.activations`).
"""

import weakref
from typing import Any

import torch
from tp2d_mesh import EngineSpec, Layout, Plan, Precision, model_batch, resolve_precision
from tp2d_mesh.cost import Estimate, Memory, step_traffic
from tp2d_mesh.cost.activations import Activations, trace_layers

from tp2d_fsdp2.engine import check
from tp2d_fsdp2.holdings import fits_gathered, holdings
from tp2d_fsdp2.planned.head_memory import HeadMemory, trace_head
from tp2d_fsdp2.planned.moments import largest
from tp2d_fsdp2.planned.one_rank import short_model
from tp2d_fsdp2.sharding import is_sharded
from tp2d_fsdp2.traffic import describe_step

CPU = torch.device("cpu")
_TRACED: weakref.WeakKeyDictionary[Any, dict[Any, tuple[Activations, HeadMemory]]] = weakref.WeakKeyDictionary()


def estimate(
    spec: EngineSpec,
    *,
    model: Any,
    layout: Layout,
    device: torch.device,
    batch: int,
    seq: int,
    micro_batches: int = 1,
    memory_per_rank: int | None = None,
) -> Estimate:
    """One optimizer step of tp rank 0 of dp rank 0, which holds the most where a size does not divide.

    No process group, no weights and no memory are needed; one that exists is not touched. What is traced is kept for
    as long as the model lives. Gradients count whole although, with one micro-batch, they come only as activations go.

    Activations are those of eager layers on rows of one text each; where layers are compiled, as on GPUs, they are an
    upper bound. On a GPU, packed rows keep as much as rows of one text: attention of variable length keeps its inputs,
    its output and a number per token and head, as causal attention does. What the allocator, the libraries and the
    communication library hold for themselves comes on top.

    Args:
        spec: how the model is trained.
        model: the unsharded model on the meta device (`tp2d_mesh.build_skeleton`).
        layout: the dp x tp layout.
        device: where the run computes; only its type matters, and this machine need not have one.
        batch: rows of a micro-batch.
        seq: tokens of a row.
        micro_batches: gradient accumulation steps.
        memory_per_rank: bytes of a rank's device, for the rule of `gather_once=None`; None: unknown, and then weights
            are taken to be gathered for each micro-batch.

    Raises:
        ValueError: see `check`.
    """
    plan = check(spec, layout=layout, device=device, model=model)
    precision = resolve_precision(spec.precision, device)
    held = holdings(model, plan=plan, layout=layout, precision=precision, optimizer=spec.optimizer)
    once = spec.gather_once
    if once is None:
        once = memory_per_rank is not None and fits_gathered(held, memory=memory_per_rank)
    step = describe_step(
        model,
        plan=plan,
        layout=layout,
        precision=precision,
        batch=batch,
        seq=seq,
        micro_batches=micro_batches,
        gather_once=once,
    )
    layers, head = _traced(spec, model=model, plan=plan, layout=layout, device=device, batch=batch, seq=seq)
    moment = largest(step, layers=layers, head=head, tied=_tied(model), held=held)
    memory = Memory(
        weights=held.weights,
        gradients=held.gradients,
        optimizer=held.optimizer,
        gathered=moment.gathered,
        activations=moment.activations,
        logits=moment.logits,
        buffers=moment.buffers,
    )
    return Estimate(memory=memory, traffic=step_traffic(step), gather_once=once)


def _tied(model: Any) -> bool:
    head = model.get_output_embeddings()
    return head is not None and head.weight is model.get_input_embeddings().weight


def _traced(
    spec: EngineSpec, *, model: Any, plan: Plan, layout: Layout, device: torch.device, batch: int, seq: int
) -> tuple[Activations, HeadMemory]:
    """The activations of the layers, and the memory of the head; once for all dp sizes."""
    precision = resolve_precision(spec.precision, device)
    sharded = is_sharded(layout, precision)
    recomputation = spec.activation_checkpointing
    key = (layout.tp, device.type, batch, seq, precision.compute, recomputation, sharded)
    known = _TRACED.setdefault(model, {})
    if key not in known:
        layers = _trace_layers(spec, model, plan, layout, precision, (batch, seq), sharded)
        size = {"batch": batch, "seq": seq}
        head = trace_head(model, layout=layout, dtype=precision.compute, device=device, **size)
        known[key] = (layers, head)
    return known[key]


def _trace_layers(
    spec: EngineSpec,
    model: Any,
    plan: Plan,
    layout: Layout,
    precision: Precision,
    size: tuple[int, int],
    sharded: bool,
) -> Activations:
    def run(short: Any) -> torch.Tensor:
        ids = torch.zeros(size, dtype=torch.int64)
        given = model_batch({"input_ids": ids, "labels": ids}, config=short.config, device=CPU)
        hidden: torch.Tensor = short.base_model(**given.inputs).last_hidden_state
        return hidden

    return trace_layers(
        model,
        plan.layers,
        build=lambda keep: short_model(model, keep, plan=plan, spec=spec, layout=layout, precision=precision),
        run=run,
        keep_gradients=sharded,
    )
