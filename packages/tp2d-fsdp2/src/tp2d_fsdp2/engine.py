"""The DTensor + FSDP2 engine: one optimizer step at a time, exact over dp, tp and accumulation.

The loss of a step is the sum over all unmasked tokens of its global batch divided by their number, so ranks and
micro-batches with other token counts weigh as they do in one process. Nothing here waits for the device in a
step: the optimizer's kernels themselves leave out a step whose gradient is not finite.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from tp2d_mesh import (
    EngineSpec,
    Layout,
    Mesh,
    ModelBatch,
    NamedTensor,
    Plan,
    Precision,
    Progress,
    StepStats,
    build_skeleton,
    chunk_range,
    model_batch,
    named_tensor,
    no_progress,
    plan_model,
    resolve_precision,
)
from tp2d_mesh.model.loss.heads import head_of
from tp2d_mesh.model.loss.tokens import count_global_tokens, global_loss_sum, token_loss_sum
from tp2d_mesh.model.optimizer import (
    build_optimizer,
    moments,
    set_learning_rate,
    set_steps_taken,
    step_unless,
    stepped_tensors,
    steps_taken,
)
from tp2d_mesh.model.weights import initialize_weights, load_weights, parameter_count

from tp2d_fsdp2 import float8
from tp2d_fsdp2.families import COMPILED_FAMILIES, is_compiled
from tp2d_fsdp2.gradients import (
    clip_factor,
    global_norm_and_loss,
    local_gradient,
    sum_partial_gradients,
)
from tp2d_fsdp2.holdings import fits_gathered, holdings
from tp2d_fsdp2.loss_scale import LossScale
from tp2d_fsdp2.parallelize import parallelize
from tp2d_fsdp2.sharding import least_memory

Batch = Mapping[str, torch.Tensor]


@overload
def check(spec: EngineSpec, *, layout: Layout, device: torch.device, model: None = None) -> None: ...
@overload
def check(spec: EngineSpec, *, layout: Layout, device: torch.device, model: nn.Module) -> Plan: ...
def check(spec: EngineSpec, *, layout: Layout, device: torch.device, model: Any = None) -> Plan | None:
    """Refuse what this engine cannot train exactly; no process group and no memory is needed.

    Args:
        spec: how the model is to be trained.
        layout: the dp x tp layout.
        device: where the run computes.
        model: the unsharded model, a skeleton on the meta device for instance; None checks the rest.

    Returns:
        The model's plan, where there is a model.

    Raises:
        ValueError: names the option, module or parameter.
    """
    precision = resolve_precision(spec.precision, device)
    if spec.float8:
        float8.check_device(precision=precision, device=device)
    if model is None:
        return None
    model_type = model.config.model_type
    if spec.compile and spec.verified_only and model_type not in COMPILED_FAMILIES:
        raise ValueError(
            f"compile=True: the layers of model type {model_type!r} have not been shown to compile whole: leave "
            f"compile out."
        )
    plan = plan_model(model, tp=layout.tp, verified_only=spec.verified_only)
    if spec.float8:
        float8.check_model(model, plan=plan, layout=layout)
    return plan


class FSDP2Engine:
    """Trains one causal language model on a dp x tp mesh.

    Args:
        spec: how it is trained.
        config: the model's transformers configuration.
        weights: local folder with safetensors files, or None to draw the weights from the spec's seed.
        mesh: the dp x tp mesh; its device is where everything lives.
        progress: is told what the constructor is doing, on every rank.

    Attributes:
        parameter_count: how many parameters the whole model has, a tied one counted once.
        compiled: whether layers are compiled.
        warnings: what a user should know of how the model is computed.

    Raises:
        ValueError: see `check`; or the folder does not hold the model's weights.
    """

    name = "fsdp2"

    def __init__(
        self, spec: EngineSpec, *, config: Any, weights: Path | None, mesh: Mesh, progress: Progress = no_progress
    ) -> None:
        self.spec, self.mesh = spec, mesh
        precision = resolve_precision(spec.precision, mesh.device)
        progress("building the model")
        self.model: Any = build_skeleton(config, spec=spec, dtype=precision.master)
        self.plan = check(spec, layout=mesh.layout, device=mesh.device, model=self.model)
        self.parameter_count = parameter_count(self.model)
        vocabulary = self.model.get_output_embeddings().weight.shape[0]
        self.vocabulary_rows = chunk_range(vocabulary, mesh.layout.tp, mesh.tp_rank)
        progress("splitting the model over the ranks")
        self.compiled = is_compiled(spec, model_type=config.model_type, device=mesh.device)
        self.head = head_of(self.model)
        self.gathers_once = self._gathers_once(precision) if spec.gather_once is None else spec.gather_once
        self.sharding = parallelize(
            self.model,
            mesh=mesh,
            plan=self.plan,
            precision=precision,
            spec=spec,
            head=self.head,
            compiled=self.compiled,
        )
        self.parameters: dict[str, nn.Parameter] = dict(self.model.named_parameters())
        self._fill_weights(weights, progress)
        # The shards themselves, not the DTensors around them: the kernels that can leave a step out take plain tensors.
        self.optimizer = build_optimizer(spec, map(_local, self.parameters.values()))
        self.loss_scale = LossScale(device=mesh.device) if precision.loss_scaling else None
        torch.manual_seed(spec.seed + mesh.dp_rank)

    @property
    def warnings(self) -> tuple[str, ...]:
        inexact = (float8.WARNING,) if self.spec.float8 else ()
        if self.compiled or self.spec.compile is not None or self.mesh.device.type == "cpu":
            return inexact
        kind = self.model.config.model_type
        return (*inexact, f"layers are not compiled: those of model type {kind!r} have not been shown to compile whole")

    def _gathers_once(self, precision: Precision) -> bool:
        layout, optimizer = self.mesh.layout, self.spec.optimizer
        held = holdings(self.model, plan=self.plan, layout=layout, precision=precision, optimizer=optimizer)
        return fits_gathered(held, memory=least_memory(self.mesh))

    def _fill_weights(self, weights: Path | None, progress: Progress) -> None:
        state = self._named("model.", self.parameters)
        with torch.no_grad():
            if weights is None:
                progress("drawing weights from the seed")
                initialize_weights(self.model, state, seed=self.spec.seed, device=self.mesh.device)
            else:
                load_weights(self.model, state, weights, progress=progress)

    def train_step(self, micro_batches: Sequence[Batch]) -> StepStats:
        """One optimizer step on this dp rank's micro-batches; collective, every rank with equally many.

        Args:
            micro_batches: dicts of `(batch, seq)` int64 `input_ids` and `labels`, right padded or, with
                `position_ids` that restart at 0 with each document, packed.

        Raises:
            ValueError: no micro-batch, or packed rows of an unproven family; see `tp2d_mesh.check_packed`.
        """
        if not micro_batches:
            raise ValueError("train_step needs at least one micro-batch.")
        self.model.train()
        batches = [self._to_device(batch) for batch in micro_batches]
        tokens, positions = count_global_tokens([batch.labels for batch in batches], dp_group=self.mesh.dp_group)
        loss_sum = self._accumulate(batches, tokens)
        sum_partial_gradients(self.parameters, self.plan, self.mesh)
        norm, loss_sum = global_norm_and_loss(self.parameters, self.plan, self.mesh, loss_sum)
        norm = norm if self.loss_scale is None else norm / self.loss_scale.value
        skipped = self._update(norm)
        return StepStats(loss=loss_sum / tokens, grad_norm=norm, tokens=tokens, positions=positions, skipped=skipped)

    def _accumulate(self, batches: Sequence[ModelBatch], tokens: torch.Tensor) -> torch.Tensor:
        """Backward of every micro-batch; returns this dp rank's summed loss."""
        scale = 1.0 if self.loss_scale is None else self.loss_scale.value
        losses: list[torch.Tensor] = []
        for i, batch in enumerate(batches):
            self.sharding.begin(keep=self.gathers_once, last=i == len(batches) - 1)
            loss = self._loss_sum(batch)
            (loss * scale / tokens.clamp(min=1)).backward()  # a step without a label has a zero gradient
            losses.append(loss.detach())
        self.sharding.end(keep=self.gathers_once)
        return sum(losses[1:], start=losses[0])

    @torch.no_grad()
    def _update(self, norm: torch.Tensor) -> torch.Tensor:
        """Undo the loss scale, clip, step, clear the gradients; returns whether the step counts as skipped.

        No step is taken where the norm is not finite, whatever the reason.
        """
        bad = ~norm.isfinite()
        limit = self.spec.max_grad_norm
        factor = torch.ones_like(norm) if limit is None else clip_factor(norm, limit)
        if self.loss_scale is not None:
            factor = factor / self.loss_scale.value
        for shard, parameter in zip(stepped_tensors(self.optimizer), self.parameters.values(), strict=True):
            shard.grad = local_gradient(parameter)
        scaled = limit is not None or self.loss_scale is not None
        step_unless(self.optimizer, bad, factor=factor if scaled else None)
        self.optimizer.zero_grad()
        self.model.zero_grad()
        return bad if self.loss_scale is None else self.loss_scale.update(bad)

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss summed over every rank's batch and the number of tokens it was summed over; collective.

        Args:
            batch: as one of `train_step`.
        """
        self.model.eval()
        on_device = self._to_device(batch)
        loss_sum = self._loss_sum(on_device)
        return global_loss_sum(loss_sum, on_device.labels, dp_group=self.mesh.dp_group)

    def _to_device(self, batch: Batch) -> ModelBatch:
        return model_batch(batch, config=self.model.config, device=self.mesh.device)

    def _loss_sum(self, batch: ModelBatch) -> torch.Tensor:
        if self.head is not None:
            loss: torch.Tensor = self.model(labels=batch.labels, **batch.inputs)
            return loss
        logits = batch.logits(self.model)
        return token_loss_sum(logits, batch.labels, rows=self.vocabulary_rows, group=self.mesh.tp_group)

    def set_learning_rate(self, learning_rate: float) -> None:
        """Use this learning rate from the next step on."""
        set_learning_rate(self.optimizer, learning_rate)

    def state(self) -> dict[str, NamedTensor]:
        """Weights and moments by name, as this rank's live boxes; moments are created if there are none yet."""
        named = self._named("model.", self.parameters)
        for moment, tensors in moments(self.spec, self.optimizer).items():
            values = dict(zip(self.parameters, tensors, strict=True))
            named |= self._named("optim.", values, suffix=f".{moment}")
        return named

    def gradients(self) -> dict[str, NamedTensor]:
        """Gradients by name, as they are now. They are complete when an optimizer's step pre-hook reads them."""
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
        """The rest of the state, as JSON that is equal on every rank."""
        return {
            "optimizer_steps": steps_taken(self.optimizer),
            "loss_scale": None if self.loss_scale is None else self.loss_scale.state(),
        }

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """The counterpart of `extra_state`; call it after the tensors of `state()` are filled."""
        set_steps_taken(self.optimizer, state["optimizer_steps"])
        if self.loss_scale is not None and state["loss_scale"] is not None:
            self.loss_scale.load(state["loss_scale"])

    def close(self) -> None:
        """Drop the model and the optimizer; the mesh stays open."""
        self.optimizer.state.clear()
        self.parameters = {}
        self.model = None


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()
