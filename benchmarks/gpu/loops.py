"""The loops that people write today, one class for each; `gpu.ours` has the engine's.

Each makes one optimizer step of a batch on its device: forward, backward, clipping to 1.0, fused AdamW. The
hyperparameters are the same for all, and so are the weights and the rows.
"""

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint
from tp2d_mesh import IGNORED, Mesh

from gpu.contenders import Contender
from gpu.rows import Batch
from gpu.weights import drawn_model

LEARNING_RATE = 1e-4
WEIGHT_DECAY = 0.01
MAX_NORM = 1.0


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a loop is built from.

    Args:
        config: the model's transformers configuration.
        contender: which loop, with which switches.
        mesh: of one rank; its device is where the model goes.
        half: compute in bf16; else everything is fp32.
        backend: of `torch.compile`.
    """

    config: Any
    contender: Contender
    mesh: Mesh
    half: bool
    backend: str

    @property
    def device(self) -> torch.device:
        return self.mesh.device

    def autocast(self) -> AbstractContextManager[Any]:
        """bf16 where the loop computes in it by autocast; else nothing."""
        if self.half and self.contender.mixed == "autocast":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()


class Loop(Protocol):
    """One optimizer step at a time."""

    def step(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The mean loss over the batch's labels and the gradient's norm before clipping, both still on the device."""
        ...


def adamw(parameters: Sequence[torch.Tensor]) -> torch.optim.Optimizer:
    """The optimizer of every loop."""
    return torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)


def on_device(batch: Batch, device: torch.device) -> Batch:
    """The batch on the device, behind what is queued there; the host waits for nothing, which needs pinned memory."""
    pinned = {name: t.pin_memory() if device.type == "cuda" else t for name, t in batch.items()}
    return {name: tensor.to(device, non_blocking=True) for name, tensor in pinned.items()}


def clipped(parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    """Clips the gradients; the norm they had."""
    norm = nn.utils.clip_grad_norm_(parameters, MAX_NORM, foreach=True)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


class Plain:
    """A transformers model under autocast: the loop of a first script. Recomputation is transformers' own."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.model = drawn_model(setting.config, device=setting.device, attention=setting.contender.attention)
        self.model.train()
        self.parameters = self.prepared(recompute=setting.contender.recompute == "full")
        self.optimizer = adamw(self.parameters)

    def prepared(self, *, recompute: bool) -> list[torch.Tensor]:
        """Makes the model as the loop wants it; returns what the optimizer steps."""
        if recompute:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return list(self.model.parameters())

    def step(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        with self.setting.autocast():
            loss = self.model(**on_device(batch, self.setting.device), use_cache=False).loss
        loss.backward()
        return loss.detach(), self.update()

    def update(self) -> torch.Tensor:
        """Clips, steps, and drops the gradients; returns their norm."""
        norm = clipped(self.parameters)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm


class Masters(Plain):
    """A transformers model in bf16; the optimizer steps fp32 copies, which are rounded to it after each step."""

    def prepared(self, *, recompute: bool) -> list[torch.Tensor]:
        used = super().prepared(recompute=recompute)
        masters = [p.detach().clone().requires_grad_() for p in used]
        for parameter in used:  # not the whole model: rotary frequencies stay in fp32
            parameter.data = parameter.data.to(torch.bfloat16 if self.setting.half else torch.float32)
        return masters

    def update(self) -> torch.Tensor:
        used = list(self.model.parameters())
        for master, parameter in zip(self.parameters, used, strict=True):
            master.grad, parameter.grad = parameter.grad.float(), None  # type: ignore[union-attr] # one at a time:
            # there is no second whole gradient in memory
        norm = super().update()
        with torch.no_grad():
            torch._foreach_copy_(used, self.parameters)
        return norm


class Compiled(Plain):
    """A transformers model, each layer compiled and in an FSDP2 unit, with bf16 weights gathered from fp32 shards."""

    def prepared(self, *, recompute: bool) -> list[torch.Tensor]:
        for layer in self.model.model.layers:
            compiled = torch.compile(layer.forward, backend=self.setting.backend)
            layer.forward = recomputed(compiled) if recompute else compiled
            shard(layer, setting=self.setting)
        shard(self.model, setting=self.setting)
        return list(self.model.parameters())


def shard(module: Any, *, setting: Setting, reshard: bool = True) -> None:
    """FSDP2 with bf16 weights and gradients summed in fp32; a module, or a list of them as one unit."""
    policy = MixedPrecisionPolicy()
    if setting.half:
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    fully_shard(module, mesh=setting.mesh.device_mesh["dp"], mp_policy=policy, reshard_after_forward=reshard)


def recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A forward that keeps its inputs only."""
    return partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False)


def token_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy summed over the labels, which are shifted already, in fp32."""
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="sum")
