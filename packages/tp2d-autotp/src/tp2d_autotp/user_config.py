"""A user's own DeepSpeed JSON: how it is read, what it may set, and how it is merged into the run's configuration.

What it says of a key that the run owns must agree with the run. What only changes speed or output is taken as it is.
Everything else is refused by name, because nobody has checked that the gradients stay exact under it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

USER_KEYS = frozenset(
    {
        "comet",
        "comms_logger",
        "csv_monitor",
        "dump_state",
        "flops_profiler",
        "fp16.initial_scale_power",
        "fp16.loss_scale_window",
        "fp16.min_loss_scale",
        "log_level",
        "memory_breakdown",
        "steps_per_print",
        "tensorboard",
        "wall_clock_breakdown",
        "wandb",
        "zero_allow_untested_optimizer",
        "zero_optimization.allgather_bucket_size",
        "zero_optimization.allgather_partitions",
        "zero_optimization.contiguous_gradients",
        "zero_optimization.overlap_comm",
        "zero_optimization.reduce_bucket_size",
        "zero_optimization.reduce_scatter",
        "zero_optimization.use_multi_rank_bucket_allreduce",
    }
)
"""What a user's DeepSpeed JSON may set freely; a dotted name is a key of a section."""

_KEY_REASONS = {
    "activation_checkpointing": "use the run's activation_checkpointing",
    "amp": "use the run's precision",
    "compile": "use the engine fsdp2 with compile",
    "data_efficiency": "the batches come from the run's own loader",
    "optimizer": "use the run's optimizer, learning_rate and weight_decay (DeepSpeed would compile its own optimizer)",
    "scheduler": "use the run's lr_scheduler and warmup_steps",
    "tensor_parallel.partition_config": "the split follows from the model's own plan",
    "tensor_parallel.preset_model": "the split follows from the model's own plan (DeepSpeed ignores a preset it does "
    "not know, and its qwen2 preset gives Qwen3 wrong gradients)",
    "torch_autocast": "use the run's precision",
    "zero_optimization.offload_optimizer": "it compiles DeepSpeed's own optimizer; use more ranks, or zero_stage=2",
    "zero_optimization.offload_param": "it belongs to ZeRO 3; use the engine fsdp2",
}


def read_user_config(path: Path) -> dict[str, Any]:
    """A user's DeepSpeed JSON file.

    Raises:
        ValueError: no such file, no JSON object, or a key given twice.
    """
    try:
        found = json.loads(path.read_text(), object_pairs_hook=_unique)
    except OSError as error:
        raise ValueError(f"deepspeed_config {path} cannot be read: {error.strerror}.") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"deepspeed_config {path} is not JSON: {error}.") from None
    if not isinstance(found, dict):
        raise ValueError(f"deepspeed_config {path} holds a {type(found).__name__}; give a JSON object.")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"deepspeed_config gives {max(names, key=names.count)!r} twice: leave one of them out.")
    return found


def merged(
    owned: Mapping[str, Any], user: Mapping[str, Any], *, origins: Mapping[str, str], section: str = ""
) -> dict[str, Any]:
    """The run's configuration with what the user's adds to it.

    Args:
        owned: what the run says.
        user: what the user says; the value `"auto"` means what the run says.
        origins: key of the configuration -> the option of the run that it comes from, for messages.
        section: the dotted name of the section that both are, with a dot at its end.

    Raises:
        ValueError: a key of `user` that contradicts the run, or that is not among `USER_KEYS`.
    """
    found = dict(owned)
    for key, value in user.items():
        name = f"{section}{key}"
        if value == "auto":
            continue
        if isinstance(value, Mapping) and name not in USER_KEYS and _is_section(name, owned.get(key)):
            found[key] = merged(owned.get(key, {}), value, origins=origins, section=f"{name}.")
        elif key in owned and name not in _KEY_REASONS:
            _check_agrees(name, value, owned[key], origins)
        elif name in USER_KEYS:
            found[key] = value
        else:
            raise _refusal(name)
    return found


def _is_section(name: str, owned: Any) -> bool:
    return isinstance(owned, Mapping) or any(key.startswith(f"{name}.") for key in USER_KEYS)


def _check_agrees(name: str, value: Any, own: Any, origins: Mapping[str, str]) -> None:
    if value != own:
        raise ValueError(
            f"deepspeed_config sets {name}={json.dumps(value)}, and the run has {json.dumps(own)} "
            f"({origins.get(name, 'precision')}): make them agree, or leave the key out."
        )


def _refusal(name: str) -> ValueError:
    reason = _KEY_REASONS.get(name)
    if reason is not None:
        return ValueError(f"deepspeed_config sets {name}: leave it out; {reason}.")
    return ValueError(
        f"deepspeed_config sets {name}, which has not been checked for exact gradients: leave it out; what it may set "
        f"beside the run's own options is {', '.join(sorted(USER_KEYS))}."
    )
