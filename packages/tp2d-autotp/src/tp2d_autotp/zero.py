"""DeepSpeed's engine over a model that has no storage yet: AutoTP splits it, ZeRO gives each rank the storage it needs.

Imported after `runtime.join` only, because it imports DeepSpeed.
"""

from collections.abc import Iterator
from typing import Any

import torch
from deepspeed.module_inject.layers import (
    LinearAllreduce,
    LinearAllreduceWithReplicatedInput,
    LinearLayer,
    TensorParallel_Layer,
    VocabParallelEmbedding,
    VocabParallelLinear,
)
from deepspeed.module_inject.tp_shard import AutoTPMeta
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.zero.config import ZERO_OPTIMIZATION
from torch import nn
from tp2d_mesh import MPU, EngineSpec, Mesh, Plan, Style
from tp2d_mesh.model.optimizer import build_optimizer

from tp2d_autotp.flat import Place

_LAYERS: dict[Style, type[nn.Module]] = {
    Style.COLUMN: LinearLayer,
    Style.COLUMN_GATHER: LinearLayer,
    Style.ROW: LinearAllreduce,
    Style.ROW_SPLIT: LinearAllreduceWithReplicatedInput,
    Style.VOCAB_HEAD: VocabParallelLinear,
    Style.VOCAB_EMBEDDING: VocabParallelEmbedding,
}


class SplitZeroEngine(DeepSpeedEngine):  # type: ignore[misc]
    """DeepSpeed's engine with AutoTP and ZeRO 1 or 2, from a skeleton.

    Args:
        spec: names the optimizer.
        model: see `with_placeholders`; it is changed in place.
        plan: its plan.
        mesh: the mesh whose groups DeepSpeed has joined.
        config: DeepSpeed's configuration.
    """

    def __init__(
        self,
        spec: EngineSpec,
        *,
        model: nn.Module,
        plan: Plan,
        mesh: Mesh,
        config: dict[str, Any],
    ) -> None:
        self.plan, self.mesh = plan, mesh
        self.global_shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
        mpu = MPU(mesh)
        super().__init__(
            args=None,
            model=model,
            optimizer=lambda _: build_optimizer(spec, self._optimizer_groups()),
            mpu=mpu,
            config=config,
            config_class=DeepSpeedConfig(config, mpu),
        )

    def _apply_autotp_partitioning(self, model: Any, tp_config: Any) -> Any:
        """First split what DeepSpeed has a layer for but no spec: an untied input embedding, row-wise from a whole."""
        tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
        for name, style in self.plan.modules.items():
            if style is Style.ROW_SPLIT or (style is Style.VOCAB_EMBEDDING and not tied):
                meta = AutoTPMeta.from_model_config(model.config)
                layer = _LAYERS[style](model.get_submodule(name), self.mesh.tp_group, name=name, tp_meta=meta)
                layer.replaced = True  # type: ignore[assignment] # AutoTP's mark of a module that it need not look at
                model.set_submodule(name, layer)
        sources = super()._apply_autotp_partitioning(model, tp_config)
        check_split(model, self.plan)
        return sources

    def _broadcast_model(self) -> None:
        """There is nothing to broadcast: every rank fills its own part of the weights afterwards."""

    def _do_optimizer_sanity_check(self, basic_optimizer: torch.optim.Optimizer) -> str:
        """ZeRO's own optimizer for both stages; DeepSpeed has another one for stage 1 with fp32 gradients of bf16."""
        return ZERO_OPTIMIZATION

    def _optimizer_groups(self) -> list[dict[str, Any]]:
        """The parameters split over tp, and the whole ones.

        Each group becomes one flat tensor over dp. Shards may differ in size from one tp rank to the next; in a group
        of their own the whole parameters are cut at the same places on all tp ranks, so that replicas have equal boxes.
        """
        named = list(self.module.named_parameters())
        split = [p for name, p in named if self.plan.parameters[name].tp_dim is not None]
        whole = [p for name, p in named if self.plan.parameters[name].tp_dim is None]
        return [{"params": params} for params in (split, whole) if params]

    def places(self) -> Iterator[Place]:
        """Where this rank's part of every parameter lies."""
        for name, parameter in self.module.named_parameters():
            tp_dim = self.plan.parameters[name].tp_dim
            offsets = [0] * parameter.dim()
            if tp_dim is not None:
                layer = self.module.get_submodule(name.rpartition(".")[0])
                offsets[tp_dim] = sum(layer._partition_sizes[: layer.tp_index])
            mapping = parameter._hp_mapping
            owned = {}
            if mapping is not None:
                lp, hp = mapping.lp_fragment_address, mapping.hp_fragment_address
                owned = {"group": mapping.param_group_index, "start": lp.start, "numel": lp.numel, "at": hp.start}
            yield Place(
                name=name,
                global_shape=self.global_shapes[name],
                local_shape=tuple(parameter.shape),
                offsets=tuple(offsets),
                **owned,
            )


def with_placeholders(model: nn.Module, *, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Give the meta parameters of `model` values in place: one number each, seen as the whole shape.

    AutoTP copies this rank's shard out of a whole parameter, and ZeRO copies the shard into its flat tensors. So only
    what a rank keeps is ever allocated, and DeepSpeed's hooks and marks stay on the parameters they were put on.

    Args:
        model: the skeleton; ties are kept.
        dtype: the dtype of the weights that forward and backward see.
        device: where they will live.
    """
    made: dict[int, nn.Parameter] = {}
    for parameter in model.parameters():
        value = torch.zeros((), dtype=dtype, device=device).expand(parameter.shape)
        made[id(parameter)] = nn.Parameter(value, requires_grad=parameter.requires_grad)
    for module in model.modules():
        for leaf, held in module._parameters.items():
            if held is not None:
                module._parameters[leaf] = made[id(held)]
    return model.to(device)


def check_split(model: nn.Module, plan: Plan) -> None:
    """Refuse a model that AutoTP has not split exactly as planned.

    Raises:
        ValueError: by the name of the first module or parameter that is otherwise.
    """
    for name, module in model.named_modules():
        style = plan.modules.get(name)
        expected = _LAYERS.get(style) if style is not None else None
        if type(module) is not expected and (expected or isinstance(module, TensorParallel_Layer)):
            raise ValueError(
                f"AutoTP made {name} a {type(module).__name__} where the plan says "
                f"{style.value if style else 'whole'!r}: use the engine fsdp2, or tp_size=1."
            )
    for name, parameter in model.named_parameters():
        summed = getattr(parameter, "_ds_grad_allreduce_registered", False)
        if summed is not plan.parameters[name].partial_gradient:
            raise ValueError(
                f"AutoTP {'sums' if summed else 'does not sum'} the gradient of {name} over the tp ranks, and the plan "
                f"says the opposite: use the engine fsdp2, or tp_size=1."
            )
