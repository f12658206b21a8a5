"""The engine of a run: whether it can train the model exactly, and the engine itself."""

import pkgutil
from collections.abc import Callable

import torch
from tp2d_mesh import Mesh, build_skeleton, check_packed

from tp2d_train.config import TrainConfig
from tp2d_train.contracts import Engine
from tp2d_train.engines import ENGINES
from tp2d_train.setup.model import ResolvedModel


def check_spec(config: TrainConfig, *, device: torch.device) -> None:
    """Refuses what the options of the engine alone tell, before a model is looked for.

    Raises:
        ValueError: a ZeRO stage, a precision, a DeepSpeed file and the like that cannot work.
    """
    pkgutil.resolve_name(ENGINES[config.engine].check)(config.engine_spec, layout=config.layout, device=device)


def check(config: TrainConfig, model: ResolvedModel, *, device: torch.device) -> None:
    """Refuses a model that the engine cannot split over `tp_size` ranks, or whose packed rows are not proven exact.

    Raises:
        ValueError: the module or option, the numbers and the way out.
    """
    spec = config.engine_spec
    try:
        skeleton = build_skeleton(model.config, spec=spec, dtype=torch.float32)
    except (ValueError, ImportError) as error:
        reason = str(error).splitlines()[0]  # of an unknown type transformers goes on with all it knows
        raise ValueError(f"model {config.model_name} cannot be built as a causal language model: {reason}") from None
    check_engine = pkgutil.resolve_name(ENGINES[config.engine].check)
    check_engine(spec, layout=config.layout, device=device, model=skeleton)
    if config.data.packing.has_positions:
        attention = skeleton.config._attn_implementation or "eager"
        check_packed(model.config, attention=attention, seq_length=config.seq_length)


def build(config: TrainConfig, model: ResolvedModel, *, mesh: Mesh, progress: Callable[[str], None]) -> Engine:
    """The model, sharded over the mesh, with its optimizer; a collective.

    Args:
        config: the settings.
        model: its configuration and weights.
        mesh: this rank's mesh.
        progress: is told how far the weights are read.

    Raises:
        ValueError: as `check`.
    """
    engine = pkgutil.resolve_name(ENGINES[config.engine].engine)
    return engine(config.engine_spec, config=model.config, weights=model.weights, mesh=mesh, progress=progress)
