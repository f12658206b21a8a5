"""From plan to DeepSpeed's layer specs, and every refusal of a model that AutoTP would split otherwise."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from tp2d_autotp import (
    AUTOTP_FAMILIES,
    AutoTPSpec,
    check,
    check_plan,
    check_specs,
    layer_specs,
    tensor_parallel_section,
)
from tp2d_mesh import VERIFIED_FAMILIES, Layout, Plan, Style, plan_model
from tp2d_mesh.testing.parity import tiny_model


def meta_model(family: str, **changes: Any) -> Any:
    with torch.device("meta"):
        return tiny_model(family, dtype=torch.float32, **changes)


@pytest.fixture(scope="module")
def qwen3() -> Any:
    return meta_model("qwen3")


@pytest.fixture(scope="module")
def plan(qwen3: Any) -> Plan:
    return plan_model(qwen3, tp=2)


def checked(model: Any, *, tp: int) -> Plan:
    return check(AutoTPSpec(), layout=Layout(dp=1, tp=tp), device=torch.device("cpu"), model=model)


def names(model: Any) -> list[str]:
    return [name for name, _ in model.named_parameters()]


def test_one_spec_for_each_kind_of_module(plan: Plan) -> None:
    specs = {spec["patterns"][0]: spec for spec in layer_specs(plan)}
    assert len(specs) == 9  # q, k, v, o, gate, up, down, q_norm, k_norm
    layer = r"^model\.layers\.\d+\."
    assert specs[layer + r"self_attn\.o_proj\.weight$"]["partition_type"] == "row"
    assert specs[layer + r"mlp\.up_proj\.weight$"]["partition_type"] == "column"
    assert specs[layer + r"self_attn\.q_norm\.(weight|bias)$"] == {
        "patterns": [layer + r"self_attn\.q_norm\.(weight|bias)$"],
        "partition_type": "skip",
        "grad_allreduce": True,
    }


def test_deepspeed_reads_the_section_as_it_is_meant(plan: Plan, qwen3: Any) -> None:
    from deepspeed.runtime.tensor_parallel.config import TPTrainingConfig

    read = TPTrainingConfig(**tensor_parallel_section(plan))
    assert read.autotp_size == 2 and read.vocab_parallel_lm_head is True
    specs = read.get_partition_config_object()
    assert specs.lm_head_patterns == ["lm_head"]
    kinds = {Style.COLUMN: "column", Style.ROW: "row", Style.PARTIAL_GRADIENT: "skip"}
    for name in names(qwen3):
        style = plan.modules.get(name.rpartition(".")[0])
        spec = specs.find_matching_spec(name, "qwen3")
        assert (spec.partition_type.value if spec else None) == kinds.get(style), name
        assert bool(spec and spec.grad_allreduce) == plan.parameters[name].partial_gradient, name


def test_every_family_of_autotp_passes() -> None:
    assert AUTOTP_FAMILIES <= VERIFIED_FAMILIES
    for family in AUTOTP_FAMILIES:
        assert checked(meta_model(family), tp=2).tp == 2


def test_without_tensor_parallelism_there_is_nothing_to_check() -> None:
    assert checked(meta_model("olmo2"), tp=1).modules == {}


def test_a_spec_that_misses_the_q_norm_reduction_is_named(plan: Plan, qwen3: Any) -> None:
    """DeepSpeed's own preset `qwen2` is such a one for Qwen3; it trains on with wrong gradients."""
    specs = [spec for spec in layer_specs(plan) if "q_norm" not in spec["patterns"][0]]
    message = (
        "model.layers.0.self_attn.q_norm.weight: the AutoTP specs say nothing where the plan says "
        "replicated_with_grad_allreduce; its gradient would be wrong on every tp rank."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        check_specs(specs, plan, names(qwen3))


def test_a_spec_that_fits_nothing_is_named(plan: Plan, qwen3: Any) -> None:
    specs = [*layer_specs(plan), {"patterns": [r".*\.w1\.weight$"], "partition_type": "column"}]
    with pytest.raises(ValueError, match=r"spec \['.*w1.*'\] fits no parameter of the model"):
        check_specs(specs, plan, names(qwen3))


def test_a_spec_that_fits_too_much_is_named(plan: Plan, qwen3: Any) -> None:
    specs = [{"patterns": [r".*"], "partition_type": "column"}]
    with pytest.raises(
        ValueError, match=r"embed_tokens.weight: the AutoTP specs say colwise where the plan says nothing"
    ):
        check_specs(specs, plan, names(qwen3))


def test_a_style_without_translation_is_refused_by_the_modules_name(plan: Plan) -> None:
    odd: Any = "moe_tp_experts"
    changed = replace(plan, modules={**plan.modules, "model.layers.0.mlp": odd})
    with pytest.raises(
        ValueError, match=r"model.layers.0.mlp asks for the tensor parallel style moe_tp_experts, which"
    ):
        tensor_parallel_section(changed)


def test_a_family_that_was_not_checked_is_refused_with_the_other_engine(plan: Plan, qwen3: Any) -> None:
    model = meta_model("qwen3")
    model.config.model_type = "novel"
    message = "model type 'novel' has not been checked for exact gradients under DeepSpeed AutoTP: use the engine fsdp2"
    with pytest.raises(ValueError, match=message):
        check_plan(plan, model)


def test_an_embedding_with_a_forward_of_its_own_is_refused(plan: Plan) -> None:
    class Scaled(nn.Embedding):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(ids)

    model = meta_model("qwen3")
    model.set_input_embeddings(Scaled(99, 32, device="meta"))
    with pytest.raises(ValueError, match=r"model.embed_tokens is a Scaled, whose forward AutoTP cannot split"):
        check_plan(plan, model)


def test_a_second_module_called_like_the_output_embedding_is_refused(plan: Plan) -> None:
    model = meta_model("qwen3")
    model.model.add_module("lm_head", nn.Linear(2, 2, device="meta"))
    with pytest.raises(ValueError, match=r"would take model.lm_head, lm_head for the output embedding lm_head"):
        check_plan(plan, model)
