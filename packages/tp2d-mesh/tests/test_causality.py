"""The check that a model is causal, on tiny models; what is refused, and the tables."""

from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from tp2d_mesh import (
    CAUSAL_FAMILIES,
    CAUSAL_IF,
    PACKED_FAMILIES,
    VARLEN_FAMILIES,
    VERIFIED_FAMILIES,
    Reach,
    Verdict,
    check_causal,
    measure_reach,
    plan_model,
)
from tp2d_mesh.model.causality import stir
from tp2d_mesh.testing.parity import TINY, tiny_model

needs_transformers = pytest.mark.skipif(
    find_spec("transformers") is None, reason="transformers is not installed: tp2d-mesh itself does without"
)


def verdict(family: str, **changes: Any) -> Verdict:
    model = tiny_model(family, dtype=torch.float64, **changes).eval()
    model.config._experts_implementation = "eager"  # the others do not take float64
    stir(model)
    return measure_reach(model, vocab_size=TINY["vocab_size"]).verdict


@needs_transformers
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text", "mamba", "qwen2_moe"])
def test_causal_families(family: str) -> None:
    """Attention, windows, a recurrent state and experts. Shows a check that finds what is not there."""
    assert verdict(family) is Verdict.CAUSAL


@needs_transformers
def test_a_bidirectional_mask_is_found() -> None:
    """The same Llama, whose configuration now asks for a mask that hides nothing."""
    assert verdict("llama") is Verdict.CAUSAL
    assert verdict("llama", is_causal=False) is Verdict.LOOKS_AHEAD


@needs_transformers
@pytest.mark.parametrize("place", [1, 11, 23])
def test_a_single_token_that_leaks_is_found(place: int) -> None:
    """One later token reaches one earlier logit, by a thousandth of it."""
    model = tiny_model("llama", dtype=torch.float64).eval()
    stir(model)

    def leak(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> torch.Tensor:
        leaking = output.clone()
        leaking[:, place - 1] += 1e-3 * output[:, place]
        return leaking

    model.lm_head.register_forward_hook(leak)
    assert measure_reach(model, vocab_size=99).verdict is Verdict.LOOKS_AHEAD


@needs_transformers
@pytest.mark.parametrize("settings", [{}, {"is_decoder": True}])
def test_bert_is_causal_as_a_decoder_only(settings: dict[str, Any]) -> None:
    assert verdict("bert", **settings) is (Verdict.CAUSAL if settings else Verdict.LOOKS_AHEAD)


@needs_transformers
def test_a_dead_model_is_not_called_causal() -> None:
    """Attention that gives nothing lets no token reach another one, neither earlier nor later."""
    model = tiny_model("llama", dtype=torch.float64).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
    assert measure_reach(model, vocab_size=99).verdict is Verdict.UNDECIDED


@needs_transformers
def test_a_noisy_model_is_not_judged() -> None:
    model = tiny_model("llama", dtype=torch.float64, attention_dropout=0.5).train()
    stir(model)
    assert measure_reach(model, vocab_size=99).verdict is Verdict.UNDECIDED


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_none_decide_nothing(value: float) -> None:
    class Broken(nn.Module):
        def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:
            return SimpleNamespace(logits=torch.full((*input_ids.shape, 9), value))

    assert measure_reach(Broken(), vocab_size=9).verdict is Verdict.UNDECIDED


def test_rounding_is_no_look_ahead() -> None:
    """Parts that compute in float32 differ by as much when experts get other numbers of tokens."""
    assert Reach(before=3e-7, after=0.4, noise=0.0).verdict is Verdict.CAUSAL
    assert Reach(before=3e-6, after=0.4, noise=0.0).verdict is Verdict.LOOKS_AHEAD


@needs_transformers
def test_a_family_that_looks_ahead_is_refused_at_tp_1() -> None:
    way_out = r"'bert' is not causal: a logit depends on later tokens.* Set is_decoder=True in its configuration"
    with pytest.raises(ValueError, match=way_out):
        plan_model(tiny_model("bert", dtype=torch.float32), tp=1)
    check_causal(tiny_model("bert", dtype=torch.float32, is_decoder=True))
    plan_model(tiny_model("bert", dtype=torch.float32), tp=1, verified_only=False)


@needs_transformers
@pytest.mark.parametrize(
    ("family", "setting"),
    [("llama", {"is_causal": False}), ("gemma3_text", {"use_bidirectional_attention": True})],
)
def test_a_causal_family_with_a_setting_that_looks_ahead(family: str, setting: dict[str, Any]) -> None:
    """The tables speak of families as they come; an embedding model of one has the other mask."""
    (name,) = setting
    with pytest.raises(ValueError, match=f"'{family}' has {name}=.* Take that out of its config.json"):
        check_causal(tiny_model(family, dtype=torch.float32, **setting))


@needs_transformers
def test_an_unknown_family_is_measured() -> None:
    """A user's own class: the one passes, and the same one with a mask that hides nothing does not."""
    from transformers import LlamaConfig, LlamaForCausalLM

    class OwnConfig(LlamaConfig):
        model_type = "own"

    class Own(LlamaForCausalLM):
        config_class = OwnConfig

    class Ahead(Own):
        def forward(self, input_ids: torch.Tensor, **options: Any) -> Any:
            mask = torch.zeros(1, 1, input_ids.shape[1], input_ids.shape[1], dtype=self.dtype)
            return super().forward(input_ids, attention_mask=mask, **options)

    config = OwnConfig(hidden_size=512, num_hidden_layers=3, num_attention_heads=8, attention_bias=True)
    with torch.device("meta"):
        own, ahead = Own(config), Ahead(config)
    state = torch.get_rng_state()
    check_causal(own)
    assert torch.equal(torch.get_rng_state(), state), "a rank that checks draws the weights it would have drawn"
    with pytest.raises(ValueError, match=r"'own' has not been shown to be causal.* the check says: looks ahead"):
        check_causal(ahead)


def test_an_unknown_family_that_cannot_be_measured() -> None:
    model = SimpleNamespace(config=SimpleNamespace(model_type="odd"))
    with pytest.raises(ValueError, match=r"'odd' has not been shown to be causal.*a tiny model of it fails"):
        check_causal(model)


def test_the_tables_agree() -> None:
    """Shows a family that one table lets through on the strength of gradients, and that looks ahead."""
    assert VERIFIED_FAMILIES | PACKED_FAMILIES | VARLEN_FAMILIES <= CAUSAL_FAMILIES
    assert not CAUSAL_FAMILIES & set(CAUSAL_IF)


@needs_transformers
def test_every_family_of_the_tables_is_one_of_transformers() -> None:
    """Shows a type whose name has changed: it would be refused, and its entry would say nothing."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    assert CAUSAL_FAMILIES | set(CAUSAL_IF) <= set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
