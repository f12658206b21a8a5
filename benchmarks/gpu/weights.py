"""The weights that every loop starts from: those that the engine draws, in a plain transformers model."""

from typing import Any

import torch
from tp2d_mesh import EngineSpec, NamedTensor, Piece, build_skeleton
from tp2d_mesh.model.weights import initialize_weights

SEED = 1


def drawn_model(config: Any, *, device: torch.device, attention: str = "sdpa") -> Any:
    """A transformers model in fp32 on the device, weights drawn from `SEED` as the engine draws them.

    Args:
        config: a transformers configuration.
        device: where its weights go.
        attention: transformers' name of an attention.
    """
    model = build_skeleton(config, spec=EngineSpec(attn_implementation=attention), dtype=torch.float32)
    model._apply(lambda t: torch.empty_like(t, device=device) if t.is_meta else t.to(device))
    model.tie_weights()
    state = {f"model.{name}": _whole(f"model.{name}", p.detach()) for name, p in model.named_parameters()}
    initialize_weights(model, state, seed=SEED, device=device)
    return model


def _whole(name: str, tensor: torch.Tensor) -> NamedTensor:
    piece = Piece(offsets=(0,) * tensor.dim(), tensor=tensor)
    return NamedTensor(name=name, global_shape=tuple(tensor.shape), pieces=(piece,))
