"""Which models' loss is computed in chunks, and with which transform."""

from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import nn
from tp2d_mesh import VERIFIED_FAMILIES
from tp2d_mesh.model.loss.heads import HEAD_FAMILIES, Head, head_of
from tp2d_mesh.model.loss.logits import UNCHANGED, LogitTransform
from tp2d_mesh.testing.parity import tiny_model

needs_transformers = pytest.mark.skipif(find_spec("transformers") is None, reason="needs transformers")
pytestmark = needs_transformers

SET = {
    "cohere": {"logit_scale": 0.3},
    "cohere2": {"logit_scale": 0.3},
    "gemma2": {"final_logit_softcapping": 0.1},
    "gemma3_text": {"final_logit_softcapping": 0.1},
    "granite": {"logits_scaling": 3.0},
    "hyperclovax": {"logits_scaling": 3.0},
    "nanochat": {"final_logit_softcapping": 0.1},
    "vaultgemma": {"final_logit_softcapping": 0.1},
}
"""Numbers for the logits of some families, in a range where they matter at tiny sizes."""


def model_of(family: str, **changes: Any) -> Any:
    return tiny_model(family, dtype=torch.float64, **{**SET.get(family, {}), **changes}).eval()


@pytest.mark.parametrize("family", sorted(VERIFIED_FAMILIES))
def test_the_head_of_every_verified_family_gives_its_logits(family: str) -> None:
    """Shows a family whose forward does more to its logits than the table says, in another transformers perhaps."""
    model = model_of(family)
    head = head_of(model)
    assert head is not None
    ids = torch.arange(3, 15)[None]
    with torch.no_grad():
        hidden = model.get_submodule(head.base)(input_ids=ids, use_cache=False).last_hidden_state
        logits = head.transform(model.get_submodule(head.output)(hidden))
        torch.testing.assert_close(logits, model(input_ids=ids, use_cache=False).logits, rtol=1e-14, atol=1e-16)


def test_every_verified_family_is_computed_in_chunks() -> None:
    assert VERIFIED_FAMILIES <= HEAD_FAMILIES


def test_a_head_names_its_parts_and_its_transform() -> None:
    assert head_of(model_of("llama")) == Head(base="model", output="lm_head", transform=UNCHANGED)
    assert head_of(model_of("gemma2")).transform == LogitTransform(soft_cap=0.1)
    assert head_of(model_of("gemma2", final_logit_softcapping=None)).transform == UNCHANGED
    assert head_of(model_of("cohere")).transform == LogitTransform(scale=0.3)
    assert head_of(model_of("granite")).transform == LogitTransform(scale=1 / 3.0)


def test_what_is_not_transformers_own_keeps_whole_logits() -> None:
    """Shows a subclass, a forward or a layer of the user's own that would be passed over in silence."""
    model = model_of("llama")
    assert head_of(model) is not None
    own = type("OwnLlama", (type(model),), {"forward": lambda self, **inputs: None})
    assert head_of(own(model.config)) is None
    patched = model_of("llama")
    patched.forward = patched.forward
    assert head_of(patched) is None
    hooked = model_of("llama")
    hooked.lm_head.register_forward_hook(lambda *_: None)
    assert head_of(hooked) is None
    other = model_of("llama")
    other.lm_head = type("OwnLinear", (nn.Linear,), {})(32, 99)
    assert head_of(other) is None


def test_an_unknown_family_keeps_whole_logits() -> None:
    """BERT has a dense layer and a norm between its base model and its output embedding."""
    model = model_of("llama")
    model.config.model_type = "bert"
    assert head_of(model) is None


def test_a_soft_cap_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"soft_cap=0\.0 of the logits is not a positive number"):
        head_of(model_of("gemma2", final_logit_softcapping=0.0))
