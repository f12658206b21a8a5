"""From a model's name to its configuration and weights: `builtin:...`, a local folder, or a hub name.

The driver checks the configuration and needs no weights. The workers take the weights too, which a node downloads once
(the hub's cache has locks). A hub name costs the driver one short request, and none where the cache has it.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tp2d_train.config import TrainConfig

if TYPE_CHECKING:
    from transformers import PretrainedConfig

BUILTIN_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 8},
    "small": {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8},
}


@dataclass(frozen=True, kw_only=True)
class ResolvedModel:
    """A model as local things.

    Args:
        config: its transformers configuration.
        weights: folder of its safetensors files; None where the weights are drawn from the seed.
        tokenizer_name: what to load its tokenizer from: a folder, a hub name or `builtin:...`.
    """

    config: "PretrainedConfig"
    weights: Path | None
    tokenizer_name: str


def check(config: TrainConfig) -> ResolvedModel:
    """The model without its weights, which are looked for only where the name is a folder; for the driver.

    Raises:
        ValueError: there is no such model, a folder has no weights, or rows are longer than the model has positions.
    """
    return _checked(config, resolve_model(config, need_weights=False))


def build(config: TrainConfig) -> ResolvedModel:
    """The model with its weights on this node's disk; for a worker.

    Raises:
        ValueError: as `check`, or the model has no weights and `from_scratch` is off.
    """
    return _checked(config, resolve_model(config))


def resolve_model(config: TrainConfig, *, need_weights: bool = True) -> ResolvedModel:
    """Finds the model that `model_name` means.

    Args:
        config: `model_name`, `tokenizer_name`, `from_scratch` (take no weights) and `trust_remote_code` are read.
        need_weights: download a hub model's weights.

    Raises:
        ValueError: there is no such model, or it has no weights and `from_scratch` is off.
    """
    name = config.model_name
    tokenizer_name = config.tokenizer_name or name
    if config.is_builtin:
        model = builtin_config(name.removeprefix("builtin:"))
        return ResolvedModel(config=model, weights=None, tokenizer_name=tokenizer_name)
    folder = _local_folder(name)
    if folder is None:
        _check_hub_name(name)
        folder = _hub_folder(name, weights=need_weights and not config.from_scratch)
    if not config.from_scratch and (need_weights or Path(name).is_dir()):
        check_weights(folder)
    model = _read_config(folder, trust_remote_code=config.trust_remote_code)
    return ResolvedModel(config=model, weights=None if config.from_scratch else folder, tokenizer_name=tokenizer_name)


def builtin_config(size: str) -> "PretrainedConfig":
    """The configuration of a built-in model: Qwen2-shaped, tied, for the built-in tokenizer.

    Raises:
        ValueError: an unknown size.
    """
    if size not in BUILTIN_SIZES:
        names = ", ".join(f"builtin:{name}" for name in BUILTIN_SIZES)
        raise ValueError(f"unknown model_name 'builtin:{size}': choose {names}, a local folder or a hub name")
    from tp2d_data import BUILTIN_VOCABULARY
    from transformers import Qwen2Config

    return Qwen2Config(
        **BUILTIN_SIZES[size],
        num_key_value_heads=4,
        vocab_size=BUILTIN_VOCABULARY,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        use_cache=False,
    )


def check_weights(folder: Path) -> None:
    """Makes sure that a folder has whole safetensors weights.

    Raises:
        ValueError: it has none, or its index names a file that is not there.
    """
    index = folder / "model.safetensors.index.json"
    files = set(json.loads(index.read_text())["weight_map"].values()) if index.exists() else {"model.safetensors"}
    missing = sorted(name for name in files if not (folder / name).exists())
    if missing:
        raise ValueError(
            f"model folder {folder} has no {', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}: save it with "
            "save_pretrained, or give --from-scratch to initialise the weights from the seed"
        )


def _checked(config: TrainConfig, model: ResolvedModel) -> ResolvedModel:
    """Refuses rows longer than the model has positions."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and config.seq_length > positions:
        raise ValueError(
            f"seq_length {config.seq_length} is longer than the {positions} positions of {config.model_name}: "
            f"choose at most {positions}"
        )
    return model


def _local_folder(name: str) -> Path | None:
    """The folder of this name, None for a name that is not a path."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise ValueError(f"model folder {folder} has no config.json: save the model there with save_pretrained")
        return folder.absolute()
    if folder.exists() or name.startswith((".", "/", "~")):
        what = "a file" if folder.exists() else "a path that does not exist"
        raise ValueError(f"model_name {name!r} is {what}: give a folder with config.json, a hub name or builtin:tiny")
    return None


def _check_hub_name(name: str) -> None:
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise ValueError(f"unknown model_name {name!r}: no folder, no builtin: model and no hub name like org/name")


def _hub_folder(name: str, *, weights: bool) -> Path:
    """The local folder of a hub model: from the cache where it is whole, else downloaded."""
    from huggingface_hub import snapshot_download, try_to_load_from_cache
    from tp2d_data import hub_reachable

    cached = try_to_load_from_cache(name, "config.json")
    folder = Path(cached).parent if isinstance(cached, str) else None
    if folder is not None and (not weights or _has_weights(folder)):
        return folder
    if not hub_reachable(name, kind="model"):
        raise ValueError(
            f"model_name {name!r} is neither a local folder nor whole in the hub's cache, and the hub cannot be "
            "reached: give a local folder or builtin:tiny"
        )
    patterns = ["*.json", "*.txt", "*.model", "*.py", *(["*.safetensors"] if weights else [])]
    return Path(snapshot_download(name, allow_patterns=patterns))


def _has_weights(folder: Path) -> bool:
    try:
        check_weights(folder)
    except ValueError:
        return False
    return True


def _read_config(folder: Path, *, trust_remote_code: bool) -> "PretrainedConfig":
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"the configuration of model {folder} cannot be read: {error}") from None
