"""DeepSpeed's configuration of a run, as a plain dictionary; nothing of DeepSpeed is imported.

The run owns what its numbers depend on: batch sizes, ZeRO stage, precision, clipping, the split. A user's own DeepSpeed
JSON is merged in: what it says of an owned key must agree with the run, what only changes speed or output is taken as
it is, and everything else is refused by name, because nobody has checked that the gradients stay exact under it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tp2d_mesh import Layout
from tp2d_mesh.devices import resolve_precision

from tp2d_autotp.precision import PRECISIONS

USER_KEYS = frozenset(
    {
        "bf16.check_grad_overflow",
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

_STAGE_REASONS = {
    0: "zero_stage=0 reports a wrong gradient norm in bf16 and clips by it: use zero_stage=1, which sends as much",
    3: "zero_stage=3 splits the weights over dp as well, and does not sum gradients exactly when token counts differ: "
    "use the engine fsdp2, which does both",
}
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


def deepspeed_config(
    *,
    layout: Layout,
    device: torch.device,
    zero_stage: int = 1,
    precision: str = "fp32",
    max_grad_norm: float | None = 1.0,
    batch_size_per_gpu: int = 1,
    gradient_accumulation_steps: int = 1,
    overlap_comm: bool | None = None,
    steps_per_print: int | None = None,
    tensor_parallel: Mapping[str, Any] | None = None,
    user: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The dictionary DeepSpeed is configured with. Pure: the driver may call it to check a run before it starts.

    Args:
        layout: the dp x tp layout; batch sizes count dp ranks, since tp ranks share their rows.
        device: where the run computes.
        zero_stage: 1 (optimizer state split over dp) or 2 (gradients too).
        precision: see `PRECISIONS`.
        max_grad_norm: clip the global gradient norm to this, or None.
        batch_size_per_gpu: rows of a micro-batch of one dp rank.
        gradient_accumulation_steps: micro-batches of an optimizer step.
        overlap_comm: reduce gradients while backward still runs; None leaves it to DeepSpeed (off for these stages).
        steps_per_print: DeepSpeed's own progress line every so many steps, or None.
        tensor_parallel: the section from `tensor_parallel_section`, or None to leave the specs out.
        user: the user's own DeepSpeed configuration; the value ``"auto"`` means what the run says.

    Raises:
        ValueError: a stage, precision or size that cannot be, or a key of `user` that contradicts the run or that
            is not among `USER_KEYS`.
    """
    _check_stage(zero_stage)
    _check_precision(precision, device)
    sizes = {"batch_size_per_gpu": batch_size_per_gpu, "gradient_accumulation_steps": gradient_accumulation_steps}
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name}={size} is not a size: give a whole number of at least 1.")
    zero = {"stage": zero_stage} if overlap_comm is None else {"stage": zero_stage, "overlap_comm": overlap_comm}
    owned: dict[str, Any] = {
        "train_batch_size": layout.dp * batch_size_per_gpu * gradient_accumulation_steps,
        "train_micro_batch_size_per_gpu": batch_size_per_gpu,
        "gradient_accumulation_steps": gradient_accumulation_steps,
        "gradient_clipping": 0.0 if max_grad_norm is None else max_grad_norm,
        # The loss is divided by the global token count before backward, so gradients add up, over dp and micro-batches.
        "gradient_allreduce_op": "sum",
        "zero_optimization": zero,
        "bf16": {"enabled": False},
        "fp16": {"enabled": False},
        **PRECISIONS[precision].sections,
        "tensor_parallel": {"autotp_size": layout.tp, **(tensor_parallel or {})},
    }
    if steps_per_print is not None:
        owned["steps_per_print"] = steps_per_print
    product = f"dp_size {layout.dp} x " + " x ".join(f"{name} {size}" for name, size in sizes.items())
    return _merged(owned, user or {}, origins=_ORIGINS | {"train_batch_size": product})


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


def _check_stage(stage: int) -> None:
    if stage not in (1, 2):
        raise ValueError(f"{_STAGE_REASONS.get(stage, f'zero_stage={stage} is not a ZeRO stage: choose 1 or 2')}.")


def _check_precision(name: str, device: torch.device) -> None:
    if name not in PRECISIONS:
        raise ValueError(f"precision={name!r} is not known; choose from {', '.join(PRECISIONS)}.")
    if name != "fp64":
        resolve_precision(name, device)


_ORIGINS = {
    "bf16.bf16_master_weights_and_grads": "precision",
    "bf16.bf16_optimizer_states": "precision",
    "bf16.enabled": "precision",
    "communication_data_type": "precision",
    "data_types.grad_accum_dtype": "precision",
    "fp16.enabled": "precision",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "gradient_allreduce_op": "the loss is a mean over all tokens of the global batch",
    "gradient_clipping": "max_grad_norm, 0 for none",
    "steps_per_print": "steps_per_print",
    "tensor_parallel.autotp_size": "tp_size",
    "train_micro_batch_size_per_gpu": "batch_size_per_gpu",
    "zero_optimization.overlap_comm": "overlap_comm",
    "zero_optimization.stage": "zero_stage",
}


def _merged(
    owned: Mapping[str, Any], user: Mapping[str, Any], *, origins: Mapping[str, str], section: str = ""
) -> dict[str, Any]:
    """`owned` with what `user` adds to it."""
    merged = dict(owned)
    for key, value in user.items():
        name = f"{section}{key}"
        if value == "auto":
            continue
        if isinstance(value, Mapping) and name not in USER_KEYS and _is_section(name, owned.get(key)):
            merged[key] = _merged(owned.get(key, {}), value, origins=origins, section=f"{name}.")
        elif key in owned and name not in _KEY_REASONS:
            _check_agrees(name, value, owned[key], origins)
        elif name in USER_KEYS:
            merged[key] = value
        else:
            raise _refusal(name)
    return merged


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
