"""What both engines take, and what they give back from an optimizer step."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from tp2d_mesh.precision import check_precision

OPTIMIZERS: dict[str, tuple[str, ...]] = {"adamw": ("exp_avg", "exp_avg_sq"), "sgd": ()}
"""Every optimizer by name, with the names of its moments. sgd is plain, for checking parity."""

RECOMPUTATION = ("none", "selective", "full")
"""What backward computes again of a decoder layer: nothing; all but matrix products and attention; everything. Sums
over tp are kept in any case."""

Progress = Callable[[str], None]
"""Takes what a start is doing now, a short text (`loading weights: 12 of 40 files`); once a second at most."""


def no_progress(message: str) -> None:
    """A `Progress` that tells nobody."""


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """How a model is trained, whatever the model and the mesh. Both engines take one.

    Args:
        precision: a key of `PRECISIONS`, or `auto`, which the engine resolves by the mesh's device.
        optimizer: a key of `OPTIMIZERS`.
        learning_rate: of the first step; an engine's `set_learning_rate` changes it.
        weight_decay: AdamW's decoupled weight decay.
        max_grad_norm: clip the global gradient norm to this; None does not clip.
        seed: of the weights, where no file holds them, and, with the dp rank added, of dropout.
        activation_checkpointing: what backward computes again, per decoder layer: one of `RECOMPUTATION`.
        compile: run `torch.compile` on each decoder layer, as one graph; None: on a GPU, for families shown to trace
            whole.
        compile_backend: torch.compile's; `aot_eager` traces without other kernels, for checking parity.
        float8: run the matrix products of the decoder layers in float8; faster on GPUs that have it, and not exact.
        gather_once: gather weights once and reduce gradients once per step, for all that is done with them in it; None:
            where whole weights and gradients, beside the rank's states, take at most half of the memory.
        attn_implementation: transformers' name of an attention (`sdpa`, `eager`, `flash_attention_2`, ...); None is
            the model's default.
        trust_remote_code: whether code from the model's repository may run.
        verified_only: refuse families whose gradients were not checked; only the parity sweeps turn it off.

    Raises:
        ValueError: an unknown precision, optimizer or recomputation, a negative rate or decay, or a norm that is not
            positive.
    """

    precision: str = "fp32"
    optimizer: str = "adamw"
    learning_rate: float = 1e-5
    weight_decay: float = 0.01
    max_grad_norm: float | None = 1.0
    seed: int = 42
    activation_checkpointing: str = "none"
    compile: bool | None = None
    compile_backend: str = "inductor"
    float8: bool = False
    gather_once: bool | None = None
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    verified_only: bool = True

    def __post_init__(self) -> None:
        check_precision(self.precision)
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer={self.optimizer!r} is not known; choose from {', '.join(OPTIMIZERS)}.")
        if self.activation_checkpointing not in RECOMPUTATION:
            raise ValueError(
                f"activation_checkpointing={self.activation_checkpointing!r} is not known; choose from "
                f"{', '.join(RECOMPUTATION)}."
            )
        for name, value in (("learning_rate", self.learning_rate), ("weight_decay", self.weight_decay)):
            if not value >= 0:
                raise ValueError(f"{name}={value} is negative: give 0 or more.")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm={self.max_grad_norm} is not a norm to clip to: give more than 0, or None.")


@dataclass(frozen=True, kw_only=True)
class StepStats:
    """What one optimizer step did: scalar tensors on the device, so reading one waits for the step.

    Args:
        loss: mean over all unmasked tokens of the global batch.
        grad_norm: global 2-norm of the gradient before clipping. It is not finite where a gradient was not.
        tokens: number of those tokens, each counted once.
        positions: number of all positions that were computed, labelled or not, each counted once.
        skipped: bool; the step was not applied, because its gradient was not finite: weights, moments and the
            optimizer's step count are as before. An overflow that lowers the loss scale of fp16 is not counted here.
    """

    loss: torch.Tensor
    grad_norm: torch.Tensor
    tokens: torch.Tensor
    positions: torch.Tensor
    skipped: torch.Tensor
