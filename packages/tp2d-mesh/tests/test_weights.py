"""Skeletons of transformers models; what is put into them is each engine's test."""

from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="transformers is not installed: tp2d-mesh itself does without")

from tp2d_mesh import EngineSpec, build_skeleton
from tp2d_mesh.model.weights import _paced, parameter_count
from tp2d_mesh.testing.parity import tiny_model


@pytest.fixture(scope="module")
def reference() -> Any:
    return tiny_model("qwen2", dtype=torch.float32)


def test_skeleton_has_no_parameter_storage_but_real_buffers_and_ties(reference: Any) -> None:
    """Shows rotary frequencies lost on the meta device, which trains to a random loss, and a lost tie."""
    skeleton = build_skeleton(reference.config, spec=EngineSpec(), dtype=torch.float32)
    assert all(p.is_meta for p in skeleton.parameters())
    expected = dict(reference.named_buffers())
    assert expected
    for name, buffer in skeleton.named_buffers():
        assert torch.equal(buffer, expected[name])
    assert skeleton.lm_head.weight is skeleton.model.embed_tokens.weight
    assert parameter_count(skeleton) == sum(p.numel() for _, p in reference.named_parameters())


def test_a_skeleton_has_the_specs_attention_and_leaves_the_configuration_alone(reference: Any) -> None:
    spec = EngineSpec(attn_implementation="eager")
    skeleton = build_skeleton(reference.config, spec=spec, dtype=torch.bfloat16)
    assert skeleton.config._attn_implementation == "eager" and skeleton.config.use_cache is False
    assert reference.config._attn_implementation == "sdpa" and reference.config.use_cache is True
    assert {p.dtype for p in skeleton.parameters()} == {torch.bfloat16}


def test_progress_is_told_once_in_a_while() -> None:
    """Shows a message for each of a thousand files."""
    told: list[str] = []
    for seconds in (3600.0, 0.0):
        tell = _paced(told.append, seconds=seconds)
        for number in range(3):
            tell(f"{seconds} {number}")
    assert told == ["3600.0 0", "0.0 0", "0.0 1", "0.0 2"]
