"""The DeepSpeed engine: AutoTP and ZeRO 1 or 2, one optimizer step at a time, exact over dp, tp and accumulation.

The loss of a step is the sum over all unmasked tokens of its global batch divided by their number, so ranks and
micro-batches with other token counts weigh as they do in one process. DeepSpeed splits, reduces, clips and steps. Where
that alone is not exact, it is corrected here or refused; see `docs/engines.md`.
"""

import copy
import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, overload

import torch
import torch.distributed as dist
from torch import nn
from tp2d_mesh import (
    Layout,
    Mesh,
    ModelBatch,
    NamedTensor,
    Plan,
    Precision,
    Progress,
    StepStats,
    build_skeleton,
    model_batch,
    no_progress,
    plan_model,
    resolve_precision,
)
from tp2d_mesh.model.loss.chunks import give_loss
from tp2d_mesh.model.loss.heads import head_of
from tp2d_mesh.model.loss.tokens import count_global_tokens, global_loss_sum, token_loss_sum
from tp2d_mesh.model.optimizer import moments, set_learning_rate, set_steps_taken, stepped_tensors, steps_taken
from tp2d_mesh.model.recomputation import recomputed
from tp2d_mesh.model.weights import initialize_weights, load_weights, parameter_count

from tp2d_autotp import runtime
from tp2d_autotp.config import AutoTPSpec, deepspeed_config
from tp2d_autotp.flat import Place
from tp2d_autotp.loss_scale import can_fall, load_scale_state, scale_state, stay_at_least
from tp2d_autotp.specs import check_plan, tensor_parallel_section

Batch = Mapping[str, torch.Tensor]


@overload
def check(spec: AutoTPSpec, *, layout: Layout, device: torch.device, model: None = None) -> None: ...
@overload
def check(spec: AutoTPSpec, *, layout: Layout, device: torch.device, model: nn.Module) -> Plan: ...
def check(spec: AutoTPSpec, *, layout: Layout, device: torch.device, model: nn.Module | None = None) -> Plan | None:
    """Refuse what this engine cannot train exactly; no process group, no memory and no DeepSpeed is needed.

    Args:
        spec: how the model is to be trained.
        layout: the dp x tp layout.
        device: where the run computes.
        model: the unsharded model, a skeleton on the meta device for instance; None checks the rest.

    Returns:
        The model's plan, where there is a model.

    Raises:
        ValueError: names the option, family, module or parameter.
    """
    if spec.compile:
        raise ValueError("compile=True has not been checked under DeepSpeed AutoTP: use the engine fsdp2 for it.")
    if spec.float8:
        raise ValueError("float8=True is not done under DeepSpeed AutoTP: use the engine fsdp2, or leave float8 out.")
    if spec.activation_checkpointing == "selective" and layout.tp > 1:
        raise ValueError(
            f"activation_checkpointing='selective' keeps matrix products that DeepSpeed AutoTP then sums over "
            f"tp_size={layout.tp} ranks in place: use 'full', tp_size=1, or the engine fsdp2."
        )
    deepspeed_config(spec, layout=layout, device=device)
    if model is None:
        return None
    plan = plan_model(model, tp=layout.tp, verified_only=spec.verified_only)
    check_plan(plan, model, verified_only=spec.verified_only)
    return plan


class AutoTPEngine:
    """Trains one causal language model on a dp x tp mesh. One engine at a time can be open in a process.

    Args:
        spec: how it is trained.
        config: the model's transformers configuration.
        weights: local folder with safetensors files, or None to draw the weights from the spec's seed.
        mesh: the dp x tp mesh; its device is where everything lives, its groups are the ones DeepSpeed uses.
        progress: is told what the constructor is doing, on every rank.

    Attributes:
        parameter_count: how many parameters the whole model has, a tied one counted once.
        compiled: whether layers are compiled.
        warnings: what a user should know of how the model is computed.

    Raises:
        ValueError: see `check`; or another engine is open, or the folder does not hold the model's weights.
    """

    name = "autotp"
    compiled = False
    warnings: tuple[str, ...] = ()

    def __init__(
        self, spec: AutoTPSpec, *, config: Any, weights: Path | None, mesh: Mesh, progress: Progress = no_progress
    ) -> None:
        self.spec, self.mesh = spec, mesh
        check(spec, layout=mesh.layout, device=mesh.device)  # before a model is built
        precision = resolve_precision(spec.precision, mesh.device)
        progress("building the model")
        skeleton = build_skeleton(config, spec=spec, dtype=precision.master)
        self.plan = check(spec, layout=mesh.layout, device=mesh.device, model=skeleton)
        self.parameter_count = parameter_count(skeleton)
        progress("splitting the model over the ranks")
        runtime.join(mesh)
        try:
            self._open(skeleton, precision)
            self._fill_weights(skeleton, weights, progress)
        except BaseException:
            runtime.leave()
            raise
        self.head = head_of(skeleton)
        if self.head is not None:
            give_loss(self.model, self.head, rows=self._vocabulary_rows(), group=mesh.tp_group)
        for name in self.plan.layers:
            layer = self.model.get_submodule(name)
            layer.forward = recomputed(layer.forward, mode=spec.activation_checkpointing, has_sums=False)
        torch.manual_seed(spec.seed + mesh.dp_rank)

    def _open(self, skeleton: Any, precision: Precision) -> None:
        from tp2d_autotp.zero import SplitZeroEngine, with_placeholders

        mesh = self.mesh
        section = tensor_parallel_section(self.plan) if mesh.layout.tp > 1 else None
        config = deepspeed_config(self.spec, layout=mesh.layout, device=mesh.device, tensor_parallel=section)
        model = with_placeholders(copy.deepcopy(skeleton), dtype=precision.compute, device=mesh.device)
        # DeepSpeed takes the index of its GPU from this variable, whichever GPUs this process sees.
        rank = runtime.environment(LOCAL_RANK=str(mesh.device.index or 0))
        with rank, redirect_stdout(io.StringIO()):  # AutoTP prints what it did
            self.zero: Any = SplitZeroEngine(self.spec, model=model, plan=self.plan, mesh=mesh, config=config)
        self.model: Any = model
        self.optimizer: torch.optim.Optimizer = self.zero.optimizer.optimizer
        stay_at_least(self.zero.optimizer.loss_scaler)
        self.places: tuple[Place, ...] = tuple(self.zero.places())

    def _fill_weights(self, skeleton: Any, weights: Path | None, progress: Progress) -> None:
        state = self._named("model.{}", stepped_tensors(self.optimizer))
        with torch.no_grad():
            if weights is None:
                progress("drawing weights from the seed")
                initialize_weights(skeleton, state, seed=self.spec.seed, device=self.mesh.device)
            else:
                load_weights(skeleton, state, weights, progress=progress)
        self._handed_out = True

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
        self._take_back()
        self.zero.train()
        batches = [self._to_device(batch) for batch in micro_batches]
        tokens, positions = count_global_tokens([batch.labels for batch in batches], dp_group=self.mesh.dp_group)
        loss_sum = self._accumulate(batches, tokens)
        dist.all_reduce(loss_sum, group=self.mesh.dp_group)
        explained = can_fall(self.zero.optimizer.loss_scaler)
        self.zero.step()
        norm = torch.as_tensor(self.zero.optimizer._global_grad_norm, dtype=torch.float32, device=self.mesh.device)
        # DeepSpeed has read the norm, or a flag before it, on the host: this waits for nothing.
        skipped = torch.full((), self.zero.optimizer.overflow and not explained, device=self.mesh.device)
        return StepStats(loss=loss_sum / tokens, grad_norm=norm, tokens=tokens, positions=positions, skipped=skipped)

    def _accumulate(self, batches: Sequence[ModelBatch], tokens: torch.Tensor) -> torch.Tensor:
        """Backward of every micro-batch; returns this dp rank's summed loss."""
        losses = []
        for i, batch in enumerate(batches):
            self.zero.set_gradient_accumulation_boundary(i == len(batches) - 1)
            loss = self._loss_sum(self.zero, batch)
            # A step without a label has a zero gradient.
            self.zero.backward(loss / tokens.clamp(min=1), scale_wrt_gas=False)
            losses.append(loss.detach())
        return torch.stack(losses).sum()

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss summed over every rank's batch and the number of tokens it was summed over; collective.

        Args:
            batch: as one of `train_step`.
        """
        self._take_back()
        self.zero.eval()
        on_device = self._to_device(batch)
        loss_sum = self._loss_sum(self.model, on_device)
        return global_loss_sum(loss_sum, on_device.labels, dp_group=self.mesh.dp_group)

    def _to_device(self, batch: Batch) -> ModelBatch:
        return model_batch(batch, config=self.model.config, device=self.mesh.device)

    def _loss_sum(self, model: Any, batch: ModelBatch) -> torch.Tensor:
        if self.head is not None:
            loss: torch.Tensor = model(labels=batch.labels, **batch.inputs)
            return loss
        logits = batch.logits(model)
        return token_loss_sum(logits, batch.labels, rows=self._vocabulary_rows(), group=self.mesh.tp_group)

    def _vocabulary_rows(self) -> tuple[int, int]:
        """What this rank holds of the output embedding; DeepSpeed cuts uneven vocabularies by a rule of its own."""
        head = self.model.get_output_embeddings()
        return getattr(head, "vocab_start_index", 0), getattr(head, "vocab_end_index", head.weight.shape[0])

    def set_learning_rate(self, learning_rate: float) -> None:
        """Use this learning rate from the next step on."""
        set_learning_rate(self.optimizer, learning_rate)

    def state(self) -> dict[str, NamedTensor]:
        """Weights and moments by name, as this rank's live boxes; moments are created if there are none yet.

        The weights are those the optimizer steps (fp32 masters under bf16 and fp16). The next step or evaluation
        computes with what the caller copies into them.
        """
        self._handed_out = True
        named = self._named("model.{}", stepped_tensors(self.optimizer))
        for moment, flats in moments(self.spec, self.optimizer).items():
            named |= self._named(f"optim.{{}}.{moment}", flats)
        return named

    def _named(self, pattern: str, flats: Sequence[torch.Tensor]) -> dict[str, NamedTensor]:
        named = {}
        for place in self.places:
            name = pattern.format(place.name)
            named[name] = place.named(name, flats[place.group].detach().narrow(0, place.at, place.numel))
        return named

    def _take_back(self) -> None:
        """Copy the optimizer's weights to forward's, if `state` was asked for and may have been filled; collective."""
        if self._handed_out:
            self.zero.optimizer.update_lp_params()
            self._handed_out = False

    def gradients(self) -> dict[str, NamedTensor]:
        """Gradients by name, before clipping. They exist only between the last backward and DeepSpeed's step."""
        named = {}
        parameters = dict(self.model.named_parameters())
        for place in self.places:
            run = torch.empty(0)
            if place.numel:
                parameter = parameters[place.name]
                run = parameter._hp_mapping.get_lp_grad_fragment(parameter._index_in_param_group).flatten()
            named[f"grad.{place.name}"] = place.named(f"grad.{place.name}", run)
        return named

    def extra_state(self) -> dict[str, Any]:
        """The rest of the state, as JSON that is equal on every rank."""
        return {
            "optimizer_steps": steps_taken(self.optimizer),
            "loss_scale": scale_state(self.zero.optimizer.loss_scaler),
        }

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """The counterpart of `extra_state`; call it after the tensors of `state()` are filled."""
        set_steps_taken(self.optimizer, state["optimizer_steps"])
        load_scale_state(self.zero.optimizer.loss_scaler, state["loss_scale"])

    def close(self) -> None:
        """Drop the model and the optimizer and leave DeepSpeed's globals as they were found; the mesh stays open."""
        self.zero.destroy()
        self.zero = self.model = None
        self.optimizer.state.clear()
        self.places = ()
        runtime.leave()
