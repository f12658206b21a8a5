"""tp2d_mesh.weights through the engine: skeletons, weights from files and weights from a seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tp2d_fsdp2 import FSDP2Engine
from tp2d_mesh import Mesh, NamedTensor
from tp2d_mesh.parity import tiny_model
from tp2d_mesh.testing import MeshError, run_on_mesh
from tp2d_mesh.weights import build_skeleton


def weights_of(mesh: Mesh, config: Any, folder: Path | None, seed: int = 42) -> dict[str, NamedTensor]:
    engine = FSDP2Engine(config=config, weights=folder, mesh=mesh, seed=seed, optimizer="sgd")
    return {name.removeprefix("model."): tensor for name, tensor in engine.state().items()}


def assembled(ranks: list[dict[str, NamedTensor]]) -> dict[str, torch.Tensor]:
    """Whole tensors from every rank's boxes; NaN where nobody has anything."""
    whole = {name: torch.full(t.global_shape, torch.nan) for name, t in ranks[0].items()}
    for named in ranks:
        for name, tensor in named.items():
            for piece in tensor.pieces:
                box = tuple(slice(o, o + n) for o, n in zip(piece.offsets, piece.tensor.shape, strict=True))
                whole[name][box] = piece.tensor
    return whole


def test_skeleton_has_no_parameter_storage_but_real_buffers_and_ties() -> None:
    """Shows rotary frequencies lost on the meta device, which trains to a random loss, and a lost tie."""
    reference = tiny_model("qwen2", dtype=torch.float32)
    skeleton = build_skeleton(reference.config, dtype=torch.float32)
    assert all(p.is_meta for p in skeleton.parameters())
    expected = dict(reference.named_buffers())
    assert expected
    for name, buffer in skeleton.named_buffers():
        assert torch.equal(buffer, expected[name])
    assert skeleton.lm_head.weight is skeleton.model.embed_tokens.weight


@pytest.mark.parametrize(("family", "shard_size"), [("qwen2", "50GB"), ("llama", "20KB")])
def test_every_rank_reads_its_boxes_from_one_or_many_files(family: str, shard_size: str, tmp_path: Path) -> None:
    model = tiny_model(family, dtype=torch.float32)
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    found = assembled(run_on_mesh(weights_of, model.config, tmp_path, dp=2, tp=2))
    assert found.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        assert torch.equal(found[name], parameter), name


def test_a_checkpoint_of_the_base_model_alone_is_read(tmp_path: Path) -> None:
    """Shows a base model's files (no ``model.`` prefix, no head) refused, which transformers reads."""
    model = tiny_model("qwen2", dtype=torch.float32)
    model.model.save_pretrained(tmp_path)
    found = assembled(run_on_mesh(weights_of, model.config, tmp_path, tp=2))
    assert torch.equal(found["model.norm.weight"], model.model.norm.weight)


def test_weights_drawn_from_a_seed_are_the_same_on_every_mesh() -> None:
    config = tiny_model("qwen3", dtype=torch.float32).config
    one, four, other = (
        assembled(run_on_mesh(weights_of, config, None, seed, dp=dp, tp=tp))
        for dp, tp, seed in ((1, 1, 42), (2, 2, 42), (1, 1, 43))
    )
    for name, value in one.items():
        assert torch.equal(value, four[name]), name
        assert not value.isnan().any(), name
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])
    drawn = one["model.layers.0.mlp.up_proj.weight"]
    assert drawn.std() == pytest.approx(config.initializer_range, rel=0.1)
    assert not torch.equal(drawn, one["model.layers.1.mlp.up_proj.weight"])


def test_refusals_name_the_folder_and_the_tensor(tmp_path: Path) -> None:
    model = tiny_model("llama", dtype=torch.float32)
    with pytest.raises(MeshError, match=r"holds neither model.safetensors nor model.safetensors.index.json"):
        run_on_mesh(weights_of, model.config, tmp_path)
    model.save_pretrained(tmp_path)
    wider = tiny_model("llama", dtype=torch.float32, intermediate_size=51)
    with pytest.raises(MeshError, match=r"gate_proj.weight has shape \(50, 32\) in .* configuration says \(51, 32\)"):
        run_on_mesh(weights_of, wider.config, tmp_path)
    deeper = tiny_model("llama", dtype=torch.float32, num_hidden_layers=3)
    with pytest.raises(MeshError, match=r"have no tensor for the parameter model.layers.2.self_attn.q_proj.weight"):
        run_on_mesh(weights_of, deeper.config, tmp_path)
