"""A transformers model whose parameters exist by name and shape only, and the weights put into a rank's boxes.

No rank ever holds the whole model: each reads its boxes from the safetensors files, or cuts them from one module at a
time that is drawn whole, from a seed of its own, so that the weights are the same on every mesh.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tp2d_mesh import NamedTensor


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Within the block, parameters of new modules are moved to the meta device as soon as they are registered."""
    register = nn.Module.register_parameter

    def register_on_meta(module: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:
            param = nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)
        register(module, name, param)

    nn.Module.register_parameter = register_on_meta  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def build_skeleton(
    config: Any, *, dtype: torch.dtype, attn_implementation: str | None, trust_remote_code: bool
) -> nn.Module:
    """A causal language model from its configuration: parameters on meta, buffers real, ties kept, no cache."""
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(config)
    config.use_cache = False
    options = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    with _parameters_on_meta():
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code, **options)
    model.tie_weights()
    return model


def load_weights(model: Any, state: Mapping[str, NamedTensor], folder: Path) -> None:
    """Fill every parameter's boxes from a Hugging Face folder of safetensors files.

    Args:
        model: the unsharded skeleton, for its tied names and its base prefix.
        state: ``model.<name>`` -> this rank's boxes.
        folder: holds ``model.safetensors`` or ``model.safetensors.index.json``.

    Raises:
        ValueError: no safetensors file, a parameter that no file holds, or another shape than the configuration's.
    """
    from safetensors import safe_open

    files = _files_by_key(folder)
    with ExitStack() as stack:
        opened = {f: stack.enter_context(safe_open(f, framework="pt")) for f in set(files.values())}
        for name, tensor in state.items():
            key = _key_in_files(model, name.removeprefix("model."), files, folder)
            source = opened[files[key]].get_slice(key)
            if tuple(source.get_shape()) != tensor.global_shape:
                raise ValueError(
                    f"{name} has shape {tuple(source.get_shape())} in {folder} where the configuration says "
                    f"{tensor.global_shape}."
                )
            _fill(tensor, source)


def _files_by_key(folder: Path) -> dict[str, Path]:
    from safetensors import safe_open

    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.exists():
        return {key: folder / file for key, file in json.loads(index.read_text())["weight_map"].items()}
    if not single.exists():
        raise ValueError(f"{folder} holds neither {single.name} nor {index.name}: save the model with save_pretrained.")
    with safe_open(single, framework="pt") as file:
        return dict.fromkeys(file.keys(), single)


def _key_in_files(model: Any, name: str, files: Mapping[str, Path], folder: Path) -> str:
    """The key a parameter has in the files: its own name, that of its tied twin, or either without the base prefix."""
    parameter = model.get_parameter(name)
    tied = [n for n, p in model.named_parameters(remove_duplicate=False) if p is parameter]
    for key in [*tied, *(n.removeprefix(f"{model.base_model_prefix}.") for n in tied)]:
        if key in files:
            return key
    raise ValueError(f"the weights in {folder} have no tensor for the parameter {name}; they hold {len(files)} others.")


def _fill(tensor: NamedTensor, source: Any) -> None:
    for piece in tensor.pieces:
        box = tuple(slice(o, o + n) for o, n in zip(piece.offsets, piece.tensor.shape, strict=True))
        piece.tensor.copy_(source[box])


def initialize_weights(model: Any, state: Mapping[str, NamedTensor], *, seed: int, device: torch.device) -> None:
    """Draw every parameter from `seed` by the model's own rules, the same on every mesh and with every engine.

    Args:
        model: the unsharded skeleton; its ``_init_weights`` says how a module of its family starts.
        state: ``model.<name>`` -> this rank's boxes.
        seed: the run's seed; each module draws from its own, made of this and its name.
        device: where the whole tensors of one module at a time are drawn.

    Raises:
        ValueError: a parameter the model's rules leave undefined.
    """
    with torch.random.fork_rng(devices=[device] if device.index is not None else []):
        for prefix, module in model.named_modules():
            names = {leaf: f"model.{prefix}.{leaf}" for leaf in module._parameters}
            drawn = {leaf: name for leaf, name in names.items() if name in state}
            if not drawn:
                continue
            whole = copy.copy(module)
            whole._parameters = dict(module._parameters)
            for leaf in drawn:
                blank = torch.full_like(module._parameters[leaf], torch.nan, device=device)
                whole._parameters[leaf] = nn.Parameter(blank, requires_grad=False)
            torch.manual_seed(int.from_bytes(hashlib.sha256(f"{seed}:{prefix}".encode()).digest()[:8], "big") >> 1)
            model._init_weights(whole)
            for leaf, name in drawn.items():
                if bool(whole._parameters[leaf].isnan().any()):
                    raise ValueError(f"{name}: the model's own rules leave it uninitialised; start from saved weights.")
                _fill(state[name], whole._parameters[leaf])
