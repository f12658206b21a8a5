"""The plan, on stand-ins for transformers models: only the attributes that the plan reads, on real torch modules.

The plans of real families are checked where they are used: by the engines' parity tests.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from tp2d_mesh import ParameterPlan, Style, check_heads, plan_model


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.o_proj = nn.Linear(8, 8), nn.Linear(8, 8)
        self.q_norm = nn.LayerNorm(2, bias=False)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm = Attention(), nn.LayerNorm(8)


class Model(nn.Module):
    """A causal language model as transformers describes one to the plan."""

    _no_split_modules = ("Layer",)

    def __init__(self, *, tied: bool = False, vocabulary: int = 10, **config: Any) -> None:
        super().__init__()
        self.config = SimpleNamespace(**{"model_type": "qwen3", "num_attention_heads": 4, **config})
        self.embed, self.layers = nn.Embedding(vocabulary, 8), nn.ModuleList([Layer(), Layer()])
        self.head = nn.Linear(8, vocabulary, bias=False)
        if tied:
            self.head.weight = self.embed.weight
        self.tp_plan = {
            "head": "colwise_gather_output",
            "layers.*.attention.q_proj": "colwise",
            "layers.*.attention.q_norm": "replicated_with_grad_allreduce",
            "layers.*.attention.o_proj": "rowwise",
        }

    def get_input_embeddings(self) -> nn.Module:
        return self.embed

    def get_output_embeddings(self) -> nn.Module:
        return self.head


def test_every_parameter_is_placed() -> None:
    plan = plan_model(Model(), tp=2)
    assert plan.layers == ("layers.0", "layers.1")
    assert plan.modules["layers.1.attention.q_proj"] is Style.COLUMN
    assert plan.modules["head"] is Style.VOCAB_HEAD
    assert plan.modules["embed"] is Style.VOCAB_EMBEDDING
    places = {
        name.removeprefix("layers.0."): place for name, place in plan.parameters.items() if "layers.1" not in name
    }
    assert places == {
        "embed.weight": ParameterPlan(tp_dim=0),
        "attention.q_proj.weight": ParameterPlan(tp_dim=0),
        "attention.q_proj.bias": ParameterPlan(tp_dim=0),
        "attention.o_proj.weight": ParameterPlan(tp_dim=1),
        "attention.o_proj.bias": ParameterPlan(),
        "attention.q_norm.weight": ParameterPlan(partial_gradient=True),
        "norm.weight": ParameterPlan(),
        "norm.bias": ParameterPlan(),
        "head.weight": ParameterPlan(tp_dim=0),
    }


def test_a_tied_parameter_has_one_place() -> None:
    plan = plan_model(Model(tied=True), tp=2)
    assert plan.parameters["embed.weight"] == ParameterPlan(tp_dim=0)
    assert "head.weight" not in plan.parameters


def test_without_tensor_parallelism_no_plan_is_needed() -> None:
    """Shows a family without a plan refused on a pure dp mesh, where nothing is split."""
    model = Model(model_type="mamba")
    model.tp_plan = {}
    plan = plan_model(model, tp=1)
    assert plan.modules == {}
    assert set(plan.parameters.values()) == {ParameterPlan()}


@pytest.mark.parametrize(
    ("config", "tp", "message"),
    [
        ({"num_attention_heads": 6}, 4, r"num_attention_heads=6 is not divisible by tp_size=4 \(6 % 4 = 2\)"),
        ({"num_key_value_heads": 2}, 4, r"num_key_value_heads=2 .* choose tp_size from \[1, 2\]"),
        ({"num_attention_heads": None}, 2, "model type 'qwen3' has no num_attention_heads"),
        ({"model_type": "mamba"}, 2, "model type 'mamba' has not been checked for exact gradients"),
    ],
)
def test_refused_configurations(config: dict, tp: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_model(Model(**config), tp=tp)


def test_heads_are_read_from_the_text_part_of_a_configuration() -> None:
    text = SimpleNamespace(model_type="text", num_attention_heads=4, num_key_value_heads=2)
    check_heads(SimpleNamespace(get_text_config=lambda: text), tp=2)
    with pytest.raises(ValueError, match="num_key_value_heads=2"):
        check_heads(SimpleNamespace(get_text_config=lambda: text), tp=4)


def no_plan(model: Model) -> None:
    model.tp_plan = {}


def unknown_style(model: Model) -> None:
    model.tp_plan["layers.*.attention.o_proj"] = "moe_tp_experts"


def forgotten_norm(model: Model) -> None:
    del model.tp_plan["layers.*.attention.q_norm"]


def other_class(model: Model) -> None:
    model.layers[0].attention.q_proj = nn.Bilinear(8, 8, 8)


def no_units(model: Model) -> None:
    model._no_split_modules = None


def no_head(model: Model) -> None:
    model.get_output_embeddings = lambda: None
    del model.tp_plan["head"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (no_plan, "model type 'qwen3' ships no tensor parallel plan, so tp_size=2"),
        (unknown_style, r"layers.0.attention.o_proj asks for the tensor parallel style 'moe_tp_experts'"),
        (forgotten_norm, r"does not say how to place 2 parameters .*: layers.0.attention.q_norm.weight"),
        (other_class, r"layers.0.attention.q_proj is a Bilinear; the style 'colwise' is exact for Linear only"),
        (no_units, "does not name its decoder layers"),
        (no_head, "has no output embedding whose logits could be split"),
    ],
)
def test_what_the_plan_cannot_vouch_for_is_refused_by_name(change: Any, message: str) -> None:
    model = Model()
    change(model)
    with pytest.raises(ValueError, match=message):
        plan_model(model, tp=2)


def test_a_rank_without_rows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"head.weight has 5 elements along dim 0, which leaves a rank of tp_size=4"):
        plan_model(Model(vocabulary=5), tp=4)


def test_dropout_beside_uneven_chunks_is_refused() -> None:
    """Shows tp ranks that draw unequally many random numbers, so that their whole activations drift apart."""
    model = Model(num_attention_heads=3, resid_pdrop=0.1)
    with pytest.raises(ValueError, match=r"layers.0.attention.q_proj.weight has 8 rows.*8 % 3 = 2.*resid_pdrop=0.1"):
        plan_model(model, tp=3)
    model.config.resid_pdrop = 0.0
    plan_model(model, tp=3)


def test_the_meta_device_is_enough() -> None:
    with torch.device("meta"):
        model = Model()
    assert plan_model(model, tp=4).tp == 4
