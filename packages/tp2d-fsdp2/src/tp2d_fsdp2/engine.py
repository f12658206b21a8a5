"""The DTensor + FSDP2 engine: one optimizer step at a time, exact over dp, tp and accumulation.

The loss of a step is the sum over all unmasked tokens of its global batch divided by their number, so ranks and
micro-batches with other token counts weigh as they do in one process. Nothing in a step waits for the device, except
that fp16 reads one flag to know whether to skip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from tp2d_mesh import Mesh, NamedTensor, chunk_range, named_tensor, plan_model
from tp2d_mesh.engine import StepStats
from tp2d_mesh.loss import count_tokens, token_loss_sum
from tp2d_mesh.packed import ModelBatch, model_batch
from tp2d_mesh.weights import build_skeleton, initialize_weights, load_weights

from tp2d_fsdp2.gradients import clip_factor, global_norm_and_loss, scale_gradients, sum_partial_gradients
from tp2d_fsdp2.optimizer import LossScale, build_optimizer, materialize_moments, moments
from tp2d_fsdp2.parallelize import parallelize
from tp2d_fsdp2.precision import precision_by_name

Batch = Mapping[str, torch.Tensor]


class FSDP2Engine:
    """Trains one causal language model on a dp x tp mesh.

    Args:
        config: the model's transformers configuration.
        weights: local folder with safetensors files, or None to draw the weights from `seed`.
        mesh: the dp x tp mesh; its device is where everything lives.
        precision: ``fp32``, ``bf16``, ``bf16-pure``, ``fp16`` or ``fp64``; see `PRECISIONS`.
        learning_rate: the first step's; see `set_learning_rate`.
        weight_decay: decoupled weight decay of AdamW.
        max_grad_norm: clip the global norm to this, or None.
        seed: of the weights (where drawn) and, with the dp rank added, of dropout.
        activation_checkpointing: recompute each decoder layer in backward.
        compile: ``torch.compile`` each decoder layer.
        attn_implementation: transformers' name of an attention, or None for its default.
        trust_remote_code: whether code from the model's repository may run.
        optimizer: ``adamw`` or ``sgd`` (plain; for parity checks).
        verified_only: refuse families not yet checked for exact gradients; only the parity sweep turns it off.

    Raises:
        ValueError: the model, the mesh or an option does not allow exact training; by name.
    """

    name = "fsdp2"

    def __init__(
        self,
        *,
        config: Any,
        weights: Path | None,
        mesh: Mesh,
        precision: str = "fp32",
        learning_rate: float = 1e-5,
        weight_decay: float = 0.01,
        max_grad_norm: float | None = 1.0,
        seed: int = 42,
        activation_checkpointing: bool = False,
        compile: bool = False,
        attn_implementation: str | None = None,
        trust_remote_code: bool = False,
        optimizer: str = "adamw",
        verified_only: bool = True,
    ) -> None:
        self.mesh = mesh
        self.max_grad_norm = max_grad_norm
        self.precision = precision_by_name(precision)
        self.model: Any = build_skeleton(
            config,
            dtype=self.precision.master,
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
        )
        self.plan = plan_model(self.model, tp=mesh.layout.tp, verified_only=verified_only)
        vocabulary = self.model.get_output_embeddings().weight.shape[0]
        self.vocabulary_rows = chunk_range(vocabulary, mesh.layout.tp, mesh.tp_rank)
        self.tp = parallelize(
            self.model,
            mesh=mesh,
            plan=self.plan,
            precision=self.precision,
            activation_checkpointing=activation_checkpointing,
            compile=compile,
        )
        self.parameters: dict[str, nn.Parameter] = dict(self.model.named_parameters())
        self._fill_weights(weights, seed)
        self.optimizer = build_optimizer(
            optimizer, self.parameters.values(), learning_rate=learning_rate, weight_decay=weight_decay
        )
        self.loss_scale = LossScale() if self.precision.loss_scaling else None
        torch.manual_seed(seed + mesh.dp_rank)

    def _fill_weights(self, weights: Path | None, seed: int) -> None:
        state = self._named("model.", self.parameters)
        with torch.no_grad():
            if weights is None:
                initialize_weights(self.model, state, seed=seed, device=self.mesh.device)
            else:
                load_weights(self.model, state, weights)

    def train_step(self, micro_batches: Sequence[Batch]) -> StepStats:
        """One optimizer step on this dp rank's micro-batches; collective, every rank with equally many.

        Args:
            micro_batches: dicts of ``(batch, seq)`` int64 ``input_ids`` and ``labels``, right padded or, with
                ``position_ids`` that restart at 0 with each document, packed.

        Raises:
            ValueError: no micro-batch, or packed rows for what was not proven exact; see `tp2d_mesh.check_packed`.
        """
        self.model.train()
        batches = [self._to_device(batch) for batch in micro_batches]
        tokens = self._global_tokens(batches)
        loss_sum = self._accumulate(batches, tokens)
        sum_partial_gradients(self.parameters, self.plan, self.mesh)
        norm, loss_sum = global_norm_and_loss(self.parameters, self.plan, self.mesh, loss_sum)
        norm = norm if self.loss_scale is None else norm / self.loss_scale.value
        self._update(norm)
        return StepStats(loss=loss_sum / tokens, grad_norm=norm, tokens=tokens)

    def _accumulate(self, batches: Sequence[ModelBatch], tokens: torch.Tensor) -> torch.Tensor:
        """Backward of every micro-batch; returns this dp rank's summed loss."""
        scale = 1.0 if self.loss_scale is None else self.loss_scale.value
        total: torch.Tensor | None = None
        for i, batch in enumerate(batches):
            self.model.set_is_last_backward(i == len(batches) - 1)
            loss = self._loss_sum(batch)
            (loss * scale / tokens.clamp(min=1)).backward()  # a step without a label has a zero gradient
            total = loss.detach() if total is None else total + loss.detach()
        self.tp.forget()
        if total is None:
            raise ValueError("train_step needs at least one micro-batch.")
        return total

    def _update(self, norm: torch.Tensor) -> None:
        """Clip, step and clear the gradients; under fp16 undo the loss scale, and skip where the range was left."""
        if self.loss_scale is None or self.loss_scale.update(norm):
            factor = torch.ones_like(norm) if self.max_grad_norm is None else clip_factor(norm, self.max_grad_norm)
            if self.loss_scale is not None:
                factor = factor / self.loss_scale.used
            if self.max_grad_norm is not None or self.loss_scale is not None:
                scale_gradients(self.parameters, factor)
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss summed over every rank's batch and the number of tokens it was summed over; collective.

        Args:
            batch: as one of `train_step`.
        """
        self.model.eval()
        on_device = self._to_device(batch)
        numbers = torch.stack([self._loss_sum(on_device).double(), count_tokens(on_device.labels).double()])
        dist.all_reduce(numbers, group=self.mesh.dp_group)
        self.tp.forget()
        return numbers[0], numbers[1].long()

    def _to_device(self, batch: Batch) -> ModelBatch:
        return model_batch(batch, config=self.model.config, device=self.mesh.device)

    def _loss_sum(self, batch: ModelBatch) -> torch.Tensor:
        logits = batch.logits(self.model)
        return token_loss_sum(logits, batch.labels, rows=self.vocabulary_rows, group=self.mesh.tp_group)

    def _global_tokens(self, batches: Sequence[ModelBatch]) -> torch.Tensor:
        tokens = torch.stack([count_tokens(batch.labels) for batch in batches]).sum()
        dist.all_reduce(tokens, group=self.mesh.dp_group)
        return tokens

    def set_learning_rate(self, learning_rate: float) -> None:
        """Use this learning rate from the next step on."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate

    def state(self) -> dict[str, NamedTensor]:
        """Weights and moments by name, as this rank's live boxes; moments are created if there are none yet."""
        materialize_moments(self.optimizer)
        named = self._named("model.", self.parameters)
        for moment, values in moments(self.optimizer, self.parameters).items():
            named |= self._named("optim.", values, suffix=f".{moment}")
        return named

    def gradients(self) -> dict[str, NamedTensor]:
        """Gradients by name, as they are now: complete when an optimizer's step pre-hook reads them."""
        return self._named("grad.", {n: p.grad for n, p in self.parameters.items() if p.grad is not None})

    def _named(self, prefix: str, tensors: Mapping[str, torch.Tensor], *, suffix: str = "") -> dict[str, NamedTensor]:
        named = {}
        for name, tensor in tensors.items():
            full = f"{prefix}{name}{suffix}"
            named[full] = named_tensor(
                full,
                _local(tensor),
                global_shape=self.parameters[name].shape,
                layout=self.mesh.layout,
                rank=self.mesh.rank,
                tp_dim=self.plan.parameters[name].tp_dim,
            )
        return named

    def extra_state(self) -> dict[str, Any]:
        """What is equal on every rank: JSON."""
        steps = [s["step"] for s in self.optimizer.state.values() if "step" in s]
        return {
            "optimizer_steps": int(steps[0]) if steps else 0,
            "loss_scale": None if self.loss_scale is None else self.loss_scale.state(),
        }

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """The counterpart of `extra_state`; call it after the tensors of `state()` are filled."""
        for values in self.optimizer.state.values():
            if "step" in values:
                values["step"].fill_(state["optimizer_steps"])
        if self.loss_scale is not None and state["loss_scale"] is not None:
            self.loss_scale.load(state["loss_scale"])

    def close(self) -> None:
        """Drop the model and the optimizer; the mesh stays open."""
        self.optimizer.state.clear()
        self.parameters = {}
        self.model = None


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()
