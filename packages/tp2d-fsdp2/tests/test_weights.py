"""tp2d_mesh.model.weights through the engine: weights from files and weights from a seed."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tp2d_fsdp2 import FSDP2Engine
from tp2d_mesh import EngineSpec, Mesh, NamedTensor
from tp2d_mesh.testing import run_on_mesh
from tp2d_mesh.testing.parity import tiny_model


def weights_of(mesh: Mesh, config: Any, folder: Path | None, seed: int = 42) -> dict[str, NamedTensor]:
    engine = FSDP2Engine(EngineSpec(seed=seed, optimizer="sgd"), config=config, weights=folder, mesh=mesh)
    state = {name.removeprefix("model."): tensor for name, tensor in engine.state().items()}
    engine.close()
    return state


def assembled(ranks: list[dict[str, NamedTensor]]) -> dict[str, torch.Tensor]:
    """Whole tensors from every rank's boxes; NaN where nobody has anything."""
    whole = {name: torch.full(t.global_shape, torch.nan) for name, t in ranks[0].items()}
    for named in ranks:
        for name, tensor in named.items():
            for piece in tensor.pieces:
                box = tuple(slice(o, o + n) for o, n in zip(piece.offsets, piece.tensor.shape, strict=True))
                whole[name][box] = piece.tensor
    return whole


@pytest.mark.parametrize(("family", "shard_size"), [("qwen2", "50GB"), ("llama", "20KB")])
def test_every_rank_reads_its_boxes_from_one_or_many_files(family: str, shard_size: str, tmp_path: Path) -> None:
    model = tiny_model(family, dtype=torch.float32)
    model.save_pretrained(tmp_path, max_shard_size=shard_size)
    found = assembled(run_on_mesh(weights_of, model.config, tmp_path, dp=2, tp=2))
    assert found.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        assert torch.equal(found[name], parameter), name


def test_a_checkpoint_of_the_base_model_alone_is_read(tmp_path: Path) -> None:
    """Shows a base model's files (no `model.` prefix, no head) refused, which transformers reads."""
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


def told(mesh: Mesh, config: Any, folder: Path | None) -> list[str]:
    messages: list[str] = []
    FSDP2Engine(EngineSpec(), config=config, weights=folder, mesh=mesh, progress=messages.append).close()
    return messages


def test_the_start_says_what_it_is_doing(tmp_path: Path) -> None:
    model = tiny_model("llama", dtype=torch.float32)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    files = len(list(tmp_path.glob("*.safetensors")))
    start = ["building the model", "splitting the model over the ranks"]
    for messages in run_on_mesh(told, model.config, tmp_path, tp=2):
        assert files > 1 and messages[:3] == [*start, f"loading weights: 1 of {files} files"]
        assert all(message.startswith("loading weights: ") for message in messages[3:])
    assert run_on_mesh(told, model.config, None) == [[*start, "drawing weights from the seed"]]


def refusal(mesh: Mesh, config: Any, folder: Path) -> str:
    with pytest.raises(ValueError) as error:
        weights_of(mesh, config, folder)
    return str(error.value)


def test_refusals_name_the_folder_and_the_tensor(tmp_path: Path) -> None:
    model = tiny_model("llama", dtype=torch.float32)
    (empty,) = run_on_mesh(refusal, model.config, tmp_path)
    assert empty.startswith(f"{tmp_path} holds neither model.safetensors nor model.safetensors.index.json")
    model.save_pretrained(tmp_path)
    wider = tiny_model("llama", dtype=torch.float32, intermediate_size=51)
    (shape,) = run_on_mesh(refusal, wider.config, tmp_path)
    assert re.search(r"gate_proj.weight has shape \(50, 32\) in .* configuration says \(51, 32\)", shape)
    deeper = tiny_model("llama", dtype=torch.float32, num_hidden_layers=3)
    (missing,) = run_on_mesh(refusal, deeper.config, tmp_path)
    assert "have no tensor for the parameter model.layers.2.self_attn.q_proj.weight" in missing
