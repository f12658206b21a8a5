"""The model families whose layers compile whole, and whether those of a run are compiled."""

import torch
from tp2d_mesh import VERIFIED_FAMILIES, EngineSpec

COMPILED_FAMILIES: frozenset[str] = VERIFIED_FAMILIES
"""`config.model_type` of every family whose layer was shown to be one graph, with the gradients of the plain layer.

`python benchmarks/parity.py --sweep --compile` shows it, with activation_checkpointing none, selective and full.
"""


def is_compiled(spec: EngineSpec, *, model_type: str, device: torch.device) -> bool:
    """Whether each layer is compiled: as the spec says, or on GPUs where the family was shown to compile whole.

    Args:
        spec: how the model is to be trained.
        model_type: of the model's configuration.
        device: where the run computes.
    """
    if spec.compile is not None:
        return spec.compile
    return device.type == "cuda" and model_type in COMPILED_FAMILIES
