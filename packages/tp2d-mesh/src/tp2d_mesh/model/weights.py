"""A transformers model whose parameters have names and shapes but no storage, and how each rank fills its shards.

No rank ever holds the whole model. The skeleton has its parameters on the meta device. Its buffers are real, because
no file holds them (rotary frequencies, for instance). After the split, each rank reads its own boxes from the
safetensors files, or draws them from the seed. One module at a time is drawn whole, from a seed of its own, so the
weights are the same on every mesh and with either engine. Only `build_skeleton` imports transformers.
"""

import copy
import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from torch.distributed.fsdp import FSDPModule

from tp2d_mesh.engine import EngineSpec, Progress, no_progress
from tp2d_mesh.model.attention.function import ATTENTION, choose_attention, register_attention
from tp2d_mesh.shards import NamedTensor


@contextmanager
def parameters_on_meta() -> Iterator[None]:
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


def build_skeleton(config: Any, *, spec: EngineSpec, dtype: torch.dtype) -> Any:
    """A causal language model from its configuration: parameters on meta, buffers real, ties kept, no cache.

    Args:
        config: a transformers configuration; it stays as it is.
        spec: its `attn_implementation` and `trust_remote_code` are read.
        dtype: dtype of the parameters.

    Raises:
        ValueError: see `choose_attention`.
    """
    from transformers import AutoModelForCausalLM

    config = copy.deepcopy(config)
    config.use_cache = False
    own_code = spec.trust_remote_code and bool(getattr(config, "auto_map", None))
    chosen = choose_attention(config, requested=spec.attn_implementation, own_code=own_code)
    if chosen == ATTENTION:
        register_attention()
    attention = {} if chosen is None else {"attn_implementation": chosen}
    with parameters_on_meta():
        model = AutoModelForCausalLM.from_config(
            config, dtype=dtype, trust_remote_code=spec.trust_remote_code, **attention
        )
    model.tie_weights()
    return model


def parameter_count(model: nn.Module) -> int:
    """How many parameters the model has, a tied one counted once; a skeleton is enough."""
    return sum(parameter.numel() for parameter in model.parameters())


def load_weights(
    model: nn.Module, state: Mapping[str, NamedTensor], folder: Path, *, progress: Progress = no_progress
) -> None:
    """Fill every parameter's boxes from a Hugging Face folder of safetensors files, one file after the other.

    Args:
        model: the model, for its tied names and its base prefix.
        state: `model.<name>` -> this rank's boxes.
        folder: holds `model.safetensors` or `model.safetensors.index.json`.
        progress: is told which file is being read.

    Raises:
        ValueError: no safetensors file, a parameter that no file holds, or another shape than the configuration's.
    """
    where = _files_by_key(folder)
    keys = {name: _key_in_files(model, name.removeprefix("model."), where, folder) for name in state}
    names_of: dict[Path, list[str]] = {}
    for name, key in keys.items():
        names_of.setdefault(where[key], []).append(name)
    tell = _paced(progress)
    for number, (file, names) in enumerate(names_of.items(), start=1):
        tell(f"loading weights: {number} of {len(names_of)} files")
        with safe_open(file, framework="pt") as source:
            for name in names:
                _fill(state[name], source.get_slice(keys[name]), folder)


def _paced(progress: Progress, *, seconds: float = 1.0) -> Progress:
    """The same, told at most once in so many seconds; what comes in between is left out."""
    told = float("-inf")

    def tell(message: str) -> None:
        nonlocal told
        if time.monotonic() - told >= seconds:
            told = time.monotonic()
            progress(message)

    return tell


def _files_by_key(folder: Path) -> dict[str, Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = json.loads(index.read_text())["weight_map"]
        return {key: folder / file for key, file in weight_map.items()}
    single = folder / "model.safetensors"
    if not single.exists():
        raise ValueError(
            f"{folder} holds neither model.safetensors nor model.safetensors.index.json: save the model with "
            f"save_pretrained (safetensors is its default format)."
        )
    with safe_open(single, framework="pt") as file:
        return dict.fromkeys(file.keys(), single)


def _key_in_files(model: Any, name: str, where: Mapping[str, Path], folder: Path) -> str:
    """The key a parameter has in the files: its own name, that of its tied twin, or either without the base prefix."""
    tied = [n for n, p in model.named_parameters(remove_duplicate=False) if p is model.get_parameter(name)]
    prefix = f"{model.base_model_prefix}."
    for key in [*tied, *(n.removeprefix(prefix) for n in tied)]:
        if key in where:
            return key
    raise ValueError(f"the weights in {folder} have no tensor for the parameter {name}; they hold {len(where)} others.")


def _fill(tensor: NamedTensor, source: Any, folder: Path) -> None:
    if tuple(source.get_shape()) != tensor.global_shape:
        raise ValueError(
            f"{tensor.name} has shape {tuple(source.get_shape())} in {folder} where the configuration says "
            f"{tensor.global_shape}."
        )
    for piece in tensor.pieces:
        box = tuple(slice(o, o + n) for o, n in zip(piece.offsets, piece.tensor.shape, strict=True))
        piece.tensor.copy_(source[box])


def initialize_weights(model: Any, state: Mapping[str, NamedTensor], *, seed: int, device: torch.device) -> None:
    """Draw every parameter from `seed` by the model's own rules, the same on every mesh.

    Args:
        model: the parallel model; its `_init_weights` says how a module of its family starts.
        state: `model.<name>` -> this rank's boxes.
        seed: the run's seed; each module draws from its own, made of this and its name.
        device: where the whole tensors of one module at a time are drawn.

    Raises:
        ValueError: a parameter the model's rules leave undefined.
    """
    with torch.random.fork_rng(devices=[device] if device.index is not None else []):
        for prefix, module in model.named_modules():
            leaves = [leaf for leaf in module._parameters if f"model.{_join(prefix, leaf)}" in state]
            if not leaves:
                continue
            whole = _whole_module(module, state, prefix, leaves, device)
            torch.manual_seed(int.from_bytes(hashlib.sha256(f"{seed}:{prefix}".encode()).digest()[:8], "big") >> 1)
            model._init_weights(whole)
            for leaf in leaves:
                _cut(state[f"model.{_join(prefix, leaf)}"], whole._parameters[leaf])


def _join(prefix: str, leaf: str) -> str:
    return f"{prefix}.{leaf}" if prefix else leaf


def _whole_module(
    module: nn.Module, state: Mapping[str, NamedTensor], prefix: str, leaves: list[str], device: torch.device
) -> nn.Module:
    """The module with whole, undefined (NaN) parameters of its own; the original stays as it is."""
    family = next(kind for kind in type(module).__mro__ if not issubclass(kind, FSDPModule))  # FSDP2 makes a subclass
    whole: Any = object.__new__(family)
    whole.__dict__ = dict(module.__dict__)
    whole._parameters = dict(module._parameters)
    for leaf in leaves:
        tensor = state[f"model.{_join(prefix, leaf)}"]
        dtype = module._parameters[leaf].dtype  # type: ignore[union-attr]
        undefined = torch.full(tensor.global_shape, torch.nan, dtype=dtype, device=device)
        whole._parameters[leaf] = nn.Parameter(undefined, requires_grad=False)
    return whole


def _cut(tensor: NamedTensor, whole: Any) -> None:
    if bool(whole.isnan().any()):
        raise ValueError(f"{tensor.name}: the model's own rules leave it uninitialised; start from saved weights.")
    for piece in tensor.pieces:
        box = tuple(slice(o, o + n) for o, n in zip(piece.offsets, piece.tensor.shape, strict=True))
        piece.tensor.copy_(whole[box])
