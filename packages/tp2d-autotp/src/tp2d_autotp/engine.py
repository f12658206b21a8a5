"""The DeepSpeed engine: AutoTP and ZeRO 1 or 2, one optimizer step at a time, exact over dp, tp and accumulation.

The loss of a step is the sum over all unmasked tokens of its global batch divided by their number, so ranks and
micro-batches with other token counts weigh as they do in one process. DeepSpeed is left to do what it does exactly:
split, reduce, clip, step. What it would do otherwise is set right here or refused; see ``docs/engines.md``.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.checkpoint import checkpoint
from tp2d_mesh import Mesh, NamedTensor, Plan, plan_model
from tp2d_mesh.engine import StepStats
from tp2d_mesh.loss import count_tokens, token_loss_sum
from tp2d_mesh.packed import ModelBatch, model_batch
from tp2d_mesh.weights import build_skeleton, initialize_weights, load_weights

from tp2d_autotp import runtime
from tp2d_autotp.config import deepspeed_config
from tp2d_autotp.flat import Place
from tp2d_autotp.optimizer import build_optimizer, load_scale_state, moments, partitions, scale_state
from tp2d_autotp.precision import PRECISIONS, Precision
from tp2d_autotp.specs import check_plan, tensor_parallel_section

Batch = Mapping[str, torch.Tensor]


class AutoTPEngine:
    """Trains one causal language model on a dp x tp mesh. One engine at a time can be open in a process.

    Args:
        config: the model's transformers configuration.
        weights: local folder with safetensors files, or None to draw the weights from `seed`.
        mesh: the dp x tp mesh; its device is where everything lives, its groups are the ones DeepSpeed uses.
        precision: ``fp32``, ``bf16``, ``bf16-pure``, ``fp16`` or ``fp64``; see `PRECISIONS`.
        learning_rate: the first step's; see `set_learning_rate`.
        weight_decay: decoupled weight decay of AdamW.
        max_grad_norm: clip the global norm to this, or None.
        seed: of the weights (where drawn) and, with the dp rank added, of dropout.
        activation_checkpointing: recompute each decoder layer in backward.
        compile: must be False; the engine fsdp2 compiles.
        attn_implementation: transformers' name of an attention, or None for its default.
        trust_remote_code: whether code from the model's repository may run.
        optimizer: ``adamw`` or ``sgd`` (plain; for parity checks).
        verified_only: refuse families not yet checked for exact gradients; only the parity sweep turns it off.
        zero_stage: 1 (optimizer state split over dp) or 2 (gradients too).
        overlap_comm: reduce gradients while backward still runs; None leaves it to DeepSpeed.
        batch_size_per_gpu, gradient_accumulation_steps: what DeepSpeed is told of the batch, for its own timers and
            for checking `deepspeed`; `train_step` takes the batches as they come.
        deepspeed: the user's own DeepSpeed configuration; see `deepspeed_config`.

    Raises:
        ValueError: the model, the mesh or an option does not allow exact training; by name.
    """

    name = "autotp"

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
        zero_stage: int = 1,
        overlap_comm: bool | None = None,
        batch_size_per_gpu: int = 1,
        gradient_accumulation_steps: int = 1,
        deepspeed: Mapping[str, Any] | None = None,
    ) -> None:
        if compile:
            raise ValueError("compile=True has not been checked under DeepSpeed AutoTP: use the engine fsdp2 for it.")
        settings = partial(
            deepspeed_config,
            layout=mesh.layout,
            device=mesh.device,
            zero_stage=zero_stage,
            precision=precision,
            max_grad_norm=max_grad_norm,
            batch_size_per_gpu=batch_size_per_gpu,
            gradient_accumulation_steps=gradient_accumulation_steps,
            overlap_comm=overlap_comm,
            user=deepspeed,
        )
        settings()  # refuses before a model is built
        self.mesh = mesh
        dtypes = PRECISIONS[precision]
        skeleton = build_skeleton(
            config,
            dtype=dtypes.master,
            attn_implementation=attn_implementation,
            trust_remote_code=trust_remote_code,
        )
        self.plan = check_model(skeleton, tp=mesh.layout.tp, verified_only=verified_only)
        section = tensor_parallel_section(self.plan) if mesh.layout.tp > 1 else None
        build = partial(build_optimizer, optimizer, learning_rate=learning_rate, weight_decay=weight_decay)
        runtime.join(mesh)
        try:
            self._open(skeleton, settings(tensor_parallel=section), build, dtypes)
            self._fill_weights(skeleton, weights, seed)
        except BaseException:
            runtime.leave()
            raise
        if activation_checkpointing:
            for name in self.plan.layers:
                layer = self.model.get_submodule(name)
                layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
        torch.manual_seed(seed + mesh.dp_rank)

    def _open(self, skeleton: Any, config: dict[str, Any], build: Any, dtypes: Precision) -> None:
        from tp2d_autotp.zero import SplitZeroEngine, with_placeholders

        model = with_placeholders(copy.deepcopy(skeleton), dtype=dtypes.compute, device=self.mesh.device)
        # DeepSpeed takes the index of its GPU from this variable, whichever GPUs this process sees.
        rank = runtime.environment(LOCAL_RANK=str(self.mesh.device.index or 0))
        with rank, redirect_stdout(io.StringIO()):  # AutoTP prints what it did
            self.zero: Any = SplitZeroEngine(
                model=model, plan=self.plan, mesh=self.mesh, config=config, build_optimizer=build
            )
        self.model: Any = model
        self.optimizer: torch.optim.Optimizer = self.zero.optimizer.optimizer
        self.places: tuple[Place, ...] = tuple(self.zero.places())

    def _fill_weights(self, skeleton: Any, weights: Path | None, seed: int) -> None:
        state = self._named("model.{}", partitions(self.optimizer))
        with torch.no_grad():
            if weights is None:
                initialize_weights(skeleton, state, seed=seed, device=self.mesh.device)
            else:
                load_weights(skeleton, state, weights)
        self._handed_out = True

    def train_step(self, micro_batches: Sequence[Batch]) -> StepStats:
        """One optimizer step on this dp rank's micro-batches; collective, every rank with equally many.

        Args:
            micro_batches: dicts of ``(batch, seq)`` int64 ``input_ids`` and ``labels``, right padded or, with
                ``position_ids`` that restart at 0 with each document, packed.

        Raises:
            ValueError: no micro-batch, or packed rows for what was not proven exact; see `tp2d_mesh.check_packed`.
        """
        if not micro_batches:
            raise ValueError("train_step needs at least one micro-batch.")
        self._take_back()
        self.zero.train()
        batches = [self._to_device(batch) for batch in micro_batches]
        tokens = torch.stack([count_tokens(batch.labels) for batch in batches]).sum()
        dist.all_reduce(tokens, group=self.mesh.dp_group)
        loss_sum = self._accumulate(batches, tokens)
        dist.all_reduce(loss_sum, group=self.mesh.dp_group)
        self.zero.step()
        norm = torch.as_tensor(self.zero.optimizer._global_grad_norm, dtype=torch.float32, device=self.mesh.device)
        return StepStats(loss=loss_sum / tokens, grad_norm=norm, tokens=tokens)

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
        tokens = count_tokens(on_device.labels)
        numbers = torch.stack([self._loss_sum(self.model, on_device).double(), tokens.double()])
        dist.all_reduce(numbers, group=self.mesh.dp_group)
        return numbers[0], numbers[1].long()

    def _to_device(self, batch: Batch) -> ModelBatch:
        return model_batch(batch, config=self.model.config, device=self.mesh.device)

    def _loss_sum(self, model: Any, batch: ModelBatch) -> torch.Tensor:
        logits = batch.logits(model)
        return token_loss_sum(logits, batch.labels, rows=self._vocabulary_rows(), group=self.mesh.tp_group)

    def _vocabulary_rows(self) -> tuple[int, int]:
        """What this rank holds of the output embedding; DeepSpeed cuts uneven vocabularies by a rule of its own."""
        head = self.model.get_output_embeddings()
        return getattr(head, "vocab_start_index", 0), getattr(head, "vocab_end_index", head.weight.shape[0])

    def set_learning_rate(self, learning_rate: float) -> None:
        """Use this learning rate from the next step on."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate

    def state(self) -> dict[str, NamedTensor]:
        """Weights and moments by name, as this rank's live boxes; moments are created if there are none yet.

        The weights are those the optimizer steps (fp32 masters under bf16 and fp16). What is copied into them is what
        the next step or evaluation computes with.
        """
        self._handed_out = True
        named = self._named("model.{}", partitions(self.optimizer))
        for moment, flats in moments(self.optimizer).items():
            named |= self._named(f"optim.{{}}.{moment}", flats)
        return named

    def _named(self, pattern: str, flats: Sequence[torch.Tensor]) -> dict[str, NamedTensor]:
        named = {}
        for place in self.places:
            name = pattern.format(place.name)
            named[name] = place.named(name, flats[place.group].detach().narrow(0, place.at, place.numel))
        return named

    def _take_back(self) -> None:
        """Show forward the optimizer's weights, where whoever asked for `state` may have changed them; collective."""
        if self._handed_out:
            self.zero.optimizer.update_lp_params()
            self._handed_out = False

    def gradients(self) -> dict[str, NamedTensor]:
        """Gradients by name, before clipping; there are some between the last backward and DeepSpeed's step only."""
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
        """What is equal on every rank: JSON."""
        steps = [state["step"] for state in self.optimizer.state.values() if "step" in state]
        return {
            "optimizer_steps": int(steps[0]) if steps else 0,
            "loss_scale": scale_state(self.zero.optimizer.loss_scaler),
        }

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """The counterpart of `extra_state`; call it after the tensors of `state()` are filled."""
        for values in self.optimizer.state.values():
            if "step" in values:
                values["step"].fill_(state["optimizer_steps"])
        load_scale_state(self.zero.optimizer.loss_scaler, state["loss_scale"])

    def close(self) -> None:
        """Drop the model and the optimizer and leave DeepSpeed's globals as they were found; the mesh stays open."""
        self.zero.destroy()
        self.zero = self.model = None
        self.optimizer.state.clear()
        self.places = ()
        runtime.leave()


def check_model(model: Any, *, tp: int, verified_only: bool = True) -> Plan:
    """The plan of a model at `tp`, with every refusal of the plan and of AutoTP; a model on the meta device is enough.

    Raises:
        ValueError: what cannot be split exactly, by the name of the option, family, module or parameter.
    """
    plan = plan_model(model, tp=tp, verified_only=verified_only)
    check_plan(plan, model, verified_only=verified_only)
    return plan
