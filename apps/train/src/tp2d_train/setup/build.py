"""What a rank builds before it trains, in this order: the mesh, the model's files, the data, and the engine.

The data come before the engine, which takes longest: what is wrong with them is said at once. The engine seeds the
random state, and is the last to touch it.
"""

import socket
from collections.abc import Callable
from dataclasses import dataclass

import torch
from tp2d_data import Loader
from tp2d_mesh import Mesh, Precision, resolve_precision
from tp2d_mesh.cost import flops_per_token
from tp2d_mesh.devices import peak_flops

from tp2d_train.config import TrainConfig
from tp2d_train.contracts import Engine
from tp2d_train.fields import text_of
from tp2d_train.report.meter import Hardware
from tp2d_train.setup import data, engine, mesh, model
from tp2d_train.setup.agreement import check_agreement, data_hash, model_hash, patient_group


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What one rank has built.

    Args:
        mesh: its place among the ranks.
        places: a table of every rank's node.
        engine: the model and its optimizer, sharded.
        precision: what it computes in.
        loader: this dp rank's training batches.
        held_out: those to evaluate on, or None.
        warnings: what a user should know of these parts.
        hardware: for the speed's share of the peak.
    """

    mesh: Mesh
    places: str
    engine: Engine
    precision: Precision
    loader: Loader
    held_out: Loader | None
    warnings: tuple[str, ...]
    hardware: Hardware


def build(
    config: TrainConfig, *, device: torch.device, phase: Callable[[str], None], progress: Callable[[str], None]
) -> Parts:
    """Builds everything; a collective.

    Args:
        config: the settings.
        device: where this rank computes.
        phase: is told what this rank is doing now, what it waits for included; of several ranks one should speak.
        progress: is told, by the rank that tokenises, how far it is.

    Raises:
        ValueError: the placement, the model or the data cannot work, or are not the same on every rank.
    """
    precision = resolve_precision(config.precision, device)
    phase(f"joining {config.num_workers} ranks")
    ranks, places = mesh.build(config, device=device)
    with patient_group() as everyone:
        phase(f"finding the files of model {config.model_name}")
        found = model.build(config)
        phase(f"opening the data of {text_of(config.dataset_name)}")
        rows = data.build(config, mesh=ranks, model=found, progress=progress)
        phase("waiting until every rank has the same model and data")
        hashes = {
            "model_name": model_hash(found),
            "dataset_name or tokenizer_name": data_hash(rows.loader),
            "the data to evaluate on": data_hash(rows.held_out),
        }
        check_agreement(hashes, node=socket.gethostname(), group=everyone)
    phase(f"loading engine {config.engine}")
    built = engine.build(config, found, mesh=ranks, progress=phase)
    return Parts(
        mesh=ranks,
        places=places,
        engine=built,
        precision=precision,
        loader=rows.loader,
        held_out=rows.held_out,
        warnings=(*built.warnings, *rows.warnings),
        hardware=_hardware(config, found, ranks, parameters=built.parameter_count, precision=precision),
    )


def _hardware(
    config: TrainConfig, found: model.ResolvedModel, ranks: Mesh, *, parameters: int, precision: Precision
) -> Hardware:
    peak = peak_flops(ranks.device, precision.compute)
    return Hardware(
        device=ranks.device,
        flops_per_token=flops_per_token(found.config, parameters=parameters, seq_length=config.seq_length),
        peak_flops=None if peak is None else peak * ranks.layout.world_size,
    )
