"""What the engine takes, and DeepSpeed's configuration of a run as a plain dictionary; DeepSpeed is not imported.

The run owns what its numbers depend on: batch sizes, ZeRO stage, precision, clipping, the split. A user's own DeepSpeed
JSON is merged in; see `user_config`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tp2d_mesh import EngineSpec, Layout, Precision, resolve_precision

from tp2d_autotp.user_config import merged, read_user_config

_STAGE_REASONS = {
    0: "zero_stage=0 reports a wrong gradient norm in bf16 and clips by it: use zero_stage=1, which sends as much",
    3: "zero_stage=3 splits the weights over dp as well, and does not sum gradients exactly when token counts differ: "
    "use the engine fsdp2, which does both",
}


@dataclass(frozen=True, kw_only=True)
class AutoTPSpec(EngineSpec):
    """How a model is trained by this engine; `compile` must be off.

    Args:
        zero_stage: 1 (optimizer state split over dp) or 2 (gradients too).
        overlap_comm: reduce gradients while backward still runs; None leaves it to DeepSpeed (off for these stages).
        batch_size_per_gpu: rows of a micro-batch of one dp rank.
        gradient_accumulation_steps: micro-batches of an optimizer step. DeepSpeed is told both sizes, for its own
            timers and to check `deepspeed_config`; `train_step` takes the batches as they come.
        deepspeed_config: the user's own DeepSpeed configuration or the path of its JSON file, which is read when
            needed. The value `"auto"` means what the run says.

    Raises:
        ValueError: as `EngineSpec`, or a size below 1.
    """

    zero_stage: int = 1
    overlap_comm: bool | None = None
    batch_size_per_gpu: int = 1
    gradient_accumulation_steps: int = 1
    deepspeed_config: Mapping[str, Any] | str | Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, size in self.sizes.items():
            if size < 1:
                raise ValueError(f"{name}={size} is not a size: give a whole number of at least 1.")

    @property
    def sizes(self) -> dict[str, int]:
        """What a dp rank's rows of an optimizer step are the product of, by name."""
        return {
            "batch_size_per_gpu": self.batch_size_per_gpu,
            "gradient_accumulation_steps": self.gradient_accumulation_steps,
        }

    def user_config(self) -> Mapping[str, Any]:
        """The user's DeepSpeed configuration, read from its file where it is a path; empty where there is none.

        Raises:
            ValueError: see `read_user_config`.
        """
        given = self.deepspeed_config
        if given is None or isinstance(given, Mapping):
            return given or {}
        return read_user_config(Path(given))


def deepspeed_config(
    spec: AutoTPSpec,
    *,
    layout: Layout,
    device: torch.device,
    tensor_parallel: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The dictionary DeepSpeed is configured with; the driver may call it to check a run before it starts.

    Args:
        spec: how the model is trained.
        layout: the dp x tp layout; batch sizes count dp ranks, since tp ranks share their rows.
        device: where the run computes.
        tensor_parallel: the section from `tensor_parallel_section`, or None to leave the specs out.

    Raises:
        ValueError: a stage or precision that cannot be, or a user's configuration that cannot be read, contradicts
            the run, or sets what is not among `USER_KEYS`.
    """
    _check_stage(spec.zero_stage)
    precision = resolve_precision(spec.precision, device)
    rows = spec.batch_size_per_gpu * spec.gradient_accumulation_steps
    overlap = {} if spec.overlap_comm is None else {"overlap_comm": spec.overlap_comm}
    owned: dict[str, Any] = {
        "train_batch_size": layout.dp * rows,
        "train_micro_batch_size_per_gpu": spec.batch_size_per_gpu,
        "gradient_accumulation_steps": spec.gradient_accumulation_steps,
        "gradient_clipping": 0.0 if spec.max_grad_norm is None else spec.max_grad_norm,
        # The loss is divided by the global token count before backward, so gradients add up, over dp and micro-batches.
        "gradient_allreduce_op": "sum",
        "zero_optimization": {"stage": spec.zero_stage} | overlap,
        **precision_sections(precision),
        "tensor_parallel": {"autotp_size": layout.tp, **(tensor_parallel or {})},
    }
    product = f"dp_size {layout.dp} x " + " x ".join(f"{name} {size}" for name, size in spec.sizes.items())
    return merged(owned, spec.user_config(), origins=_ORIGINS | {"train_batch_size": product})


def precision_sections(precision: Precision) -> dict[str, Any]:
    """What DeepSpeed's configuration says about a precision. (DeepSpeed steps fp64 weights in fp32.)"""
    # Without the check DeepSpeed would apply a bf16 step that is not finite; in fp32 and fp16 it always checks.
    bf16: dict[str, Any] = {"enabled": precision.compute is torch.bfloat16, "check_grad_overflow": True}
    fp16: dict[str, Any] = {"enabled": precision.compute is torch.float16}
    if precision.master is torch.bfloat16:
        bf16 |= {"bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}
    if precision.loss_scaling:
        # DeepSpeed's tolerance of a second overflow (hysteresis) is a count that no checkpoint of another engine has.
        fp16 |= {"loss_scale": 0, "hysteresis": 1}
    sections = {"bf16": bf16, "fp16": fp16}
    if precision.reduce is precision.compute:
        return sections
    # Gradients are accumulated over micro-batches and summed over dp in fp32; DeepSpeed's default is the model's dtype.
    return sections | {"data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"}


def _check_stage(stage: int) -> None:
    if stage not in (1, 2):
        raise ValueError(f"{_STAGE_REASONS.get(stage, f'zero_stage={stage} is not a ZeRO stage: choose 1 or 2')}.")


_ORIGINS = {
    "bf16.bf16_master_weights_and_grads": "precision",
    "bf16.bf16_optimizer_states": "precision",
    "bf16.check_grad_overflow": "a step whose gradient is not finite is skipped",
    "bf16.enabled": "precision",
    "communication_data_type": "precision",
    "data_types.grad_accum_dtype": "precision",
    "fp16.enabled": "precision",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "gradient_allreduce_op": "the loss is a mean over all tokens of the global batch",
    "gradient_clipping": "max_grad_norm, 0 for none",
    "tensor_parallel.autotp_size": "tp_size",
    "train_micro_batch_size_per_gpu": "batch_size_per_gpu",
    "zero_optimization.overlap_comm": "overlap_comm",
    "zero_optimization.stage": "zero_stage",
}
