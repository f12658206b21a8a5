"""The training loops that `loops.py` compares, one class each, on the same weights, rows and hyperparameters.

All compute in fp32 with fused AdamW and none is slowed down. `step` takes this rank's rows, a batch of the loader, and
returns the loss that the loop itself knows: the global mean (ours), or the mean of this dp rank's rows (the others).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn
from tp2d_mesh import Mesh

Batch = dict[str, Any]

LEARNING_RATE, WEIGHT_DECAY, MAX_NORM = 1e-4, 0.01, 1.0
IGNORED = -100


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a contender runs, and on what.

    Args:
        mesh: the dp x tp mesh of its ranks; the sizes count, and native loops make groups of their own.
        model: folder with the configuration and the weights.
        clip: whether gradients are clipped to `MAX_NORM`.
        steps: how many steps the run has in all.
        rows: of a dp rank's batch.
    """

    mesh: Mesh
    model: Path
    clip: bool
    steps: int
    rows: int


class Turns(Protocol):
    """How a contender takes its turns; see `loop_rank.Turns`."""

    def begin(self) -> None: ...

    def step(self, loss: torch.Tensor) -> bool: ...


class Stepping:
    """A contender whose step is a function: it is called once for each batch while it has turns."""

    def step(self, batch: Batch) -> torch.Tensor:
        raise NotImplementedError

    def run(self, batches: Iterable[Batch], turns: Turns) -> None:
        """All steps, one batch each."""
        turns.begin()
        for batch in batches:
            if not turns.step(self.step(batch)):
                return


class Ours(Stepping):
    """The fsdp2 engine, as its defaults are. It clips in every case, which others are also measured without."""

    def __init__(self, place: Place) -> None:
        from tp2d_fsdp2 import FSDP2Engine
        from tp2d_mesh import EngineSpec
        from transformers import AutoConfig

        spec = EngineSpec(learning_rate=LEARNING_RATE, weight_decay=WEIGHT_DECAY, max_grad_norm=MAX_NORM)
        config = AutoConfig.from_pretrained(place.model)
        self.engine = FSDP2Engine(spec, config=config, weights=place.model, mesh=place.mesh)

    def step(self, batch: Batch) -> torch.Tensor:
        return self.engine.train_step([batch]).loss


class Plain(Stepping):
    """transformers alone, in one process."""

    def __init__(self, place: Place) -> None:
        self.model = whole_model(place.model)
        self.optimizer, self.clip = adamw(self.model), place.clip

    def step(self, batch: Batch) -> torch.Tensor:
        loss = self.model(input_ids=batch["input_ids"], labels=batch["labels"], use_cache=False).loss
        loss.backward()
        if self.clip:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()


class ByHand(Stepping):
    """torch's tensor parallel styles and FSDP2, as torch's tutorial joins them, with the plan that ours has.

    Attention and MLP are split over tp, and the vocabulary of embedding and head, whose loss is torch's
    `loss_parallel`. The whole model is loaded first, which nothing here measures.
    """

    def __init__(self, place: Place) -> None:
        from torch.distributed.fsdp import fully_shard

        model: Any = whole_model(place.model)
        meshes = place.mesh.device_mesh
        split_over_tp(model, meshes["tp"])
        for layer in model.model.layers:
            fully_shard(layer, mesh=meshes["dp"])
        fully_shard(model, mesh=meshes["dp"])
        self.model, self.clip = model, place.clip
        self.optimizer = adamw(model)

    def step(self, batch: Batch) -> torch.Tensor:
        from torch.distributed.tensor import DTensor
        from torch.distributed.tensor.parallel import loss_parallel

        targets = F.pad(batch["labels"], (0, 1), value=IGNORED)[:, 1:].flatten()
        with loss_parallel():
            logits = self.model(input_ids=batch["input_ids"], use_cache=False).logits
            loss = F.cross_entropy(logits.flatten(0, 1), targets, ignore_index=IGNORED)
            loss.backward()
        if self.clip:
            clip_by_mesh(self.model)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return (loss.full_tensor() if isinstance(loss, DTensor) else loss).detach()


class Native(Stepping):
    """transformers' own tensor parallelism and FSDP2, asked for by a `DistributedConfig`."""

    def __init__(self, place: Place) -> None:
        self.model = native_model(place)
        self.optimizer = adamw(self.model)

    def step(self, batch: Batch) -> torch.Tensor:
        loss = self.model(input_ids=batch["input_ids"], labels=batch["labels"], use_cache=False).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()


class WithTrainer:
    """transformers' Trainer over accelerate; its own loop takes the turns.

    On CPUs accelerate has neither tensor parallelism (it refuses a model that is split) nor FSDP: only DDP.
    """

    def __init__(self, place: Place) -> None:
        import accelerate  # noqa: F401 # say now that it is not installed

        self.model, self.place = whole_model(place.model), place

    def run(self, batches: Iterable[Batch], turns: Turns) -> None:
        """All steps: `batches` are the global ones, of which Trainer hands each rank its rows."""
        from transformers import Trainer, TrainerCallback

        latest: list[torch.Tensor] = []

        class Taking(TrainerCallback):
            def on_train_begin(self, *_: Any, **__: Any) -> None:
                turns.begin()

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                control.should_training_stop = not turns.step(latest[-1])

        class InOrder(Trainer):
            def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
                return torch.utils.data.SequentialSampler(self.train_dataset)

            def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
                loss = super().compute_loss(*args, **kwargs)
                latest[:] = [loss.detach()]
                return loss

        rows = [dict(zip(batch, row, strict=True)) for batch in batches for row in zip(*batch.values(), strict=True)]
        trainer = InOrder(
            model=self.model, args=training_arguments(self.place), train_dataset=rows, callbacks=[Taking()]
        )
        trainer.train()


CONTENDERS: dict[str, Callable[[Place], Any]] = {
    "ours": Ours,
    "plain": Plain,
    "by-hand": ByHand,
    "native": Native,
    "trainer": WithTrainer,
}


def whole_model(folder: Path) -> nn.Module:
    """The model with its weights, whole on this rank."""
    from transformers import AutoModelForCausalLM

    model: nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.train()


def native_model(place: Place) -> nn.Module:
    """The model as transformers splits it over tp and shards it over dp."""
    from transformers import AutoModelForCausalLM
    from transformers.distributed import DistributedConfig

    layout = place.mesh.layout
    sizes = DistributedConfig(tp_size=layout.tp, fsdp_size=layout.dp)
    model: nn.Module = AutoModelForCausalLM.from_pretrained(place.model, dtype=torch.float32, distributed_config=sizes)
    return model.train()


def split_over_tp(model: Any, mesh: Any) -> None:
    """The same plan as ours, in torch's styles; a tied head is tied again to the embedding that replaced its own."""
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    plan: dict[str, Any] = {"model.embed_tokens": RowwiseParallel(input_layouts=Replicate())}
    plan["lm_head"] = ColwiseParallel(output_layouts=Shard(-1), use_local_output=False)
    plan |= {f"model.layers.*.self_attn.{name}_proj": ColwiseParallel() for name in "qkv"}
    plan |= {f"model.layers.*.mlp.{name}_proj": ColwiseParallel() for name in ("gate", "up")}
    plan |= {f"model.layers.*.{name}": RowwiseParallel() for name in ("self_attn.o_proj", "mlp.down_proj")}
    parallelize_module(model, mesh, plan)
    if model.config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """torch's quickest AdamW."""
    return torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)


def clip_by_mesh(model: nn.Module) -> None:
    """What torch's `clip_grad_norm_` does, which raises where some parameters are split over tp and some are not."""
    from torch.nn.utils import clip_grads_with_norm_, get_total_norm

    groups: dict[Any, list[Any]] = {}
    for parameter in model.parameters():
        if parameter.grad is not None:
            groups.setdefault(parameter.grad.device_mesh, []).append(parameter)  # type: ignore[attr-defined]
    norms = [get_total_norm([p.grad for p in group], foreach=True).full_tensor() for group in groups.values()]  # type: ignore[attr-defined]
    total = torch.stack(norms).square().sum().sqrt()
    for group in groups.values():
        clip_grads_with_norm_(group, MAX_NORM, total, foreach=True)


def training_arguments(place: Place) -> Any:
    """Trainer's settings: the same optimizer, no logs, no files; gradients are clipped where the contender clips."""
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=str(place.model / "trainer"),
        max_steps=place.steps,
        per_device_train_batch_size=place.rows,
        learning_rate=LEARNING_RATE,
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=MAX_NORM if place.clip else 0.0,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        ddp_backend="gloo",
        remove_unused_columns=False,
    )
