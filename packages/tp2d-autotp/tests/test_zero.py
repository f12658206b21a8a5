"""The skeleton that DeepSpeed is given, and the check of what AutoTP made of it."""

import math
from typing import Any

import pytest
import torch
from tp2d_autotp import AutoTPEngine, AutoTPSpec, runtime
from tp2d_mesh import EngineSpec, Mesh, build_skeleton, plan_model
from tp2d_mesh.testing import run_on_mesh
from tp2d_mesh.testing.parity import tiny_model


def skeleton(family: str) -> Any:
    config = tiny_model(family, dtype=torch.float32).config
    return build_skeleton(config, spec=EngineSpec(), dtype=torch.float32)


def test_placeholders_take_no_storage_and_keep_ties() -> None:
    runtime.load("cpu")
    from tp2d_autotp.zero import with_placeholders

    model: Any = with_placeholders(skeleton("gemma3_text"), dtype=torch.bfloat16, device=torch.device("cpu"))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    for name, parameter in model.named_parameters():
        assert parameter.dtype == torch.bfloat16 and parameter.untyped_storage().nbytes() == 2, name
    assert float(model.model.embed_tokens.embed_scale) == pytest.approx(32**0.5, rel=1e-2)


def test_a_model_that_autotp_left_whole_is_refused_by_the_modules_name() -> None:
    """Shows specs that DeepSpeed matched with nothing: it would train on without tensor parallelism."""
    runtime.load("cpu")
    from tp2d_autotp.zero import check_split

    model = skeleton("qwen3")
    message = r"AutoTP made model.embed_tokens a Embedding where the plan says .embedding_rowwise.: use the"
    with pytest.raises(ValueError, match=message):
        check_split(model, plan_model(model, tp=2))


def storage(mesh: Mesh, config: Any) -> dict[str, tuple[tuple[int, ...], int]]:
    """Every parameter's shape here, and how many bytes of ZeRO state this rank has."""
    engine = AutoTPEngine(AutoTPSpec(), config=config, weights=None, mesh=mesh)
    assert not engine.optimizer.state  # counting parameters creates no moments
    assert engine.parameter_count == sum(math.prod(shape) for shape in engine.zero.global_shapes.values())
    engine.state()
    held = [tensor for state in engine.optimizer.state.values() for tensor in state.values() if tensor.dim()]
    bytes_held = sum(tensor.untyped_storage().nbytes() for tensor in held)
    found = {name: (tuple(p.shape), bytes_held) for name, p in engine.model.named_parameters()}
    engine.close()
    return found


def test_a_rank_holds_its_shards_and_its_share_of_the_moments() -> None:
    """Shows an embedding left whole on every tp rank, and moments that ZeRO does not split."""
    config = tiny_model("llama", dtype=torch.float32, vocab_size=96, intermediate_size=48).config
    for found in run_on_mesh(storage, config, dp=2, tp=2):
        assert found["model.embed_tokens.weight"][0] == (48, 32)
        assert found["lm_head.weight"][0] == (48, 32)
        assert found["model.layers.0.self_attn.q_proj.weight"][0] == (16, 32)
        assert found["model.layers.0.mlp.down_proj.weight"][0] == (32, 24)
        assert found["model.norm.weight"][0] == (32,)
        local = sum(torch.Size(shape).numel() for shape, _ in found.values())
        assert found["model.norm.weight"][1] == 2 * 4 * local // 2  # two fp32 moments of half of what is here
