"""What a rank builds before it trains: the mesh, the data, and the model as an engine.

The data come before the model, which takes longest: what is wrong with them is said at once, and the engine, which
seeds the random state, is the last to touch it.
"""

import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from tp2d_data import Loader, TooFewRows, create_dataloader
from tp2d_mesh import Layout, Mesh, build_mesh
from tp2d_mesh.devices import peak_flops, resolve_precision
from tp2d_mesh.placement import check_tp_groups, rank_table

from tp2d_train.agreement import check_agreement, data_digits, model_digits, patient_group
from tp2d_train.checks import check_positions, deepspeed_options, source_options, task_options
from tp2d_train.config import TrainConfig
from tp2d_train.engines import Engine, create_engine
from tp2d_train.meter import Hardware, flops_per_token
from tp2d_train.models import ResolvedModel, resolve_model

COMPUTE_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "bf16-pure": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What one rank has built.

    Args:
        mesh: its place among the ranks.
        places: a table of every rank's node.
        engine: the model and its optimizer, sharded.
        parameters: how many the model has, a tied one once.
        precision: what it computes in, `auto` resolved.
        loader: this dp rank's training batches.
        held_out: those to evaluate on, or None.
        warnings: what a person should know of these parts.
        hardware: for the speed's share of the peak.
    """

    mesh: Mesh
    places: str
    engine: Engine
    parameters: int
    precision: str
    loader: Loader
    held_out: Loader | None
    warnings: tuple[str, ...]
    hardware: Hardware


def build(config: TrainConfig, *, device: torch.device, progress: Callable[[str], None]) -> Parts:
    """Builds everything; a collective.

    Args:
        config: the settings.
        device: where this rank computes.
        progress: is told, by the rank that tokenises, how far it is.

    Raises:
        ValueError: the placement, the model or the data cannot work, or are not the same on every rank.
    """
    precision = resolve_precision(config.precision, device)
    mesh = _join(config, device)
    node = socket.gethostname()
    places = gather_places(mesh, node=node, allow_cross_node_tp=config.allow_cross_node_tp)
    with patient_group() as everyone:
        model = resolve_model(
            config.model_name, from_scratch=config.from_scratch, trust_remote_code=config.trust_remote_code
        )
        check_positions(config, model.config)
        loader, held_out, warnings = _load_data(config, mesh, model, progress=progress)
        found = {
            "model_name": model_digits(model),
            "dataset_name or tokenizer_name": data_digits(loader),
            "the data to evaluate on": data_digits(held_out),
        }
        check_agreement(found, node=node, group=everyone)
    engine = _build_engine(config, mesh, model, precision=precision)
    parameters = sum(prod(t.global_shape) for t in engine.state().values() if t.name.startswith("model."))
    return Parts(
        mesh=mesh,
        places=places,
        engine=engine,
        parameters=parameters,
        precision=precision,
        loader=loader,
        held_out=held_out,
        warnings=warnings,
        hardware=_hardware(config, mesh, model, parameters=parameters, dtype=COMPUTE_DTYPES[precision]),
    )


def gather_places(mesh: Mesh, *, node: str, allow_cross_node_tp: bool) -> str:
    """A table of every rank's node; a collective.

    Args:
        mesh: the mesh of all ranks.
        node: the name of this rank's node.
        allow_cross_node_tp: whether a tp group may stand on two nodes.

    Raises:
        ValueError: one does, and may not.
    """
    nodes = [""] * mesh.layout.world_size
    dist.all_gather_object(nodes, node, group=mesh.world_group)
    if not allow_cross_node_tp:
        check_tp_groups(nodes, layout=mesh.layout)
    return rank_table(nodes, layout=mesh.layout)


def check_vocabulary(tokens: int, model: Any) -> None:
    """Refuses a tokenizer with more tokens than the model has embeddings.

    Raises:
        ValueError: with both numbers.
    """
    vocabulary = model.get_text_config().vocab_size
    if tokens > vocabulary:
        raise ValueError(
            f"the tokenizer has {tokens} tokens and the model's vocab_size is {vocabulary}: "
            "set tokenizer_name to the model's own tokenizer"
        )


def _join(config: TrainConfig, device: torch.device) -> Mesh:
    layout = Layout(dp=config.dp_size, tp=config.tp_size)
    return build_mesh(layout, device=device, timeout=timedelta(seconds=config.timeout_s))


def _load_data(
    config: TrainConfig, mesh: Mesh, model: ResolvedModel, *, progress: Callable[[str], None]
) -> tuple[Loader, Loader | None, tuple[str, ...]]:
    load = partial(_load, config, mesh, model, progress=progress)
    blocks = {"streaming": config.streaming, "block_tokens": config.block_tokens}
    loader = load(part="train", last_batch=config.last_batch, **blocks)
    check_vocabulary(loader.vocab_size, model.config)
    return loader, *_load_held_out(config, load)


def _load_held_out(config: TrainConfig, load: Callable[..., Loader]) -> tuple[Loader | None, tuple[str, ...]]:
    """The batches to evaluate on, all of them: the last one is filled up. Where the data give none, a run that did not
    ask for evaluations goes without, and says so; one that set `eval_interval_steps` is refused.

    Of a stream no more is read ahead than an evaluation takes.
    """
    if not config.holdout_percentage:
        return None, ()
    batch = config.dp_size * config.batch_size_per_gpu * config.seq_length
    tokens = config.block_tokens if config.eval_batches is None else config.eval_batches * batch
    try:
        held_out = load(part="eval", last_batch="pad", streaming=config.streaming, block_tokens=tokens)
        next(iter(held_out))  # a stream is first read here; each evaluation begins anew
        return held_out, ()
    except TooFewRows as error:
        if config.eval_interval_steps is not None:
            raise ValueError(f"{error}; or leave out eval_interval_steps") from None
        return None, (f"no evaluation, {error}",)


def _load(config: TrainConfig, mesh: Mesh, model: ResolvedModel, **options: Any) -> Loader:
    return create_dataloader(
        config.model_name,
        config.dataset_names,
        config.seq_length,
        config.batch_size_per_gpu,
        mesh.dp_rank,
        mesh.layout.dp,
        seed=config.seed,
        dataset_weights=config.weights if options["part"] == "train" or config.streaming else None,
        tokenizer_name=config.tokenizer_name or model.tokenizer_name,
        device=mesh.device,
        trust_remote_code=config.trust_remote_code,
        **source_options(config),
        **task_options(config),
        **_row_options(config),
        **options,
    )


def _row_options(config: TrainConfig) -> dict[str, Any]:
    names = ("packing", "respect_boundaries", "append_eos")
    return {name: getattr(config, name) for name in names}


def _build_engine(config: TrainConfig, mesh: Mesh, model: ResolvedModel, *, precision: str) -> Engine:
    return create_engine(
        config.engine,
        config=model.config,
        weights=model.weights,
        mesh=mesh,
        precision=precision,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed,
        activation_checkpointing=config.activation_checkpointing,
        compile=config.compile,
        attn_implementation=config.attn_implementation,
        trust_remote_code=config.trust_remote_code,
        optimizer=config.optimizer,
        **(deepspeed_options(config) if config.engine == "autotp" else {}),
    )


def _hardware(
    config: TrainConfig, mesh: Mesh, model: ResolvedModel, *, parameters: int, dtype: torch.dtype
) -> Hardware:
    peak = peak_flops(mesh.device, dtype)
    return Hardware(
        device=mesh.device,
        flops_per_token=flops_per_token(model.config, parameters=parameters, seq_length=config.seq_length),
        peak_flops=None if peak is None else peak * mesh.layout.world_size,
    )
