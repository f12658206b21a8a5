"""Weights drawn from a seed: the same on every mesh, and with either engine."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from tp2d_autotp import AutoTPEngine, AutoTPSpec
from tp2d_mesh import EngineSpec, Mesh
from tp2d_mesh.testing import run_on_mesh
from tp2d_mesh.testing.parity import tiny_model, worst_differences


def drawn(mesh: Mesh, config: Any, name: str) -> dict[str, Any]:
    engine = open_engine(mesh, config, name)
    weights = {name: tensor for name, tensor in engine.state().items() if name.startswith("model.")}
    engine.close()
    return weights


def open_engine(mesh: Mesh, config: Any, name: str) -> Any:
    if name == "autotp":
        return AutoTPEngine(AutoTPSpec(seed=5), config=config, weights=None, mesh=mesh)
    from tp2d_fsdp2 import FSDP2Engine

    return FSDP2Engine(EngineSpec(seed=5), config=config, weights=None, mesh=mesh)


def told(mesh: Mesh, config: Any, folder: Path | None) -> list[str]:
    messages: list[str] = []
    AutoTPEngine(AutoTPSpec(), config=config, weights=folder, mesh=mesh, progress=messages.append).close()
    return messages


def test_the_start_says_what_it_is_doing(tmp_path: Path) -> None:
    model = tiny_model("llama", dtype=torch.float32)
    model.save_pretrained(tmp_path)
    start = ["building the model", "splitting the model over the ranks"]
    assert run_on_mesh(told, model.config, tmp_path, dp=2) == [[*start, "loading weights: 1 of 1 files"]] * 2
    assert run_on_mesh(told, model.config, None) == [[*start, "drawing weights from the seed"]]


@pytest.mark.parametrize(
    ("engine", "dp", "tp"),
    [
        ("autotp", 2, 2),
        ("autotp", 1, 4),
        pytest.param(
            "fsdp2",
            1,
            2,
            marks=pytest.mark.skipif(find_spec("tp2d_fsdp2") is None, reason="tp2d-fsdp2 is not installed"),
        ),
    ],
)
def test_the_same_on_every_mesh_and_with_either_engine(engine: str, dp: int, tp: int) -> None:
    config = tiny_model("gemma3_text", dtype=torch.float32).config
    (alone,) = run_on_mesh(drawn, config, "autotp")
    whole = {}
    for name, tensor in alone.items():
        whole[name.removeprefix("model.")] = torch.cat([p.tensor.flatten() for p in tensor.pieces]).view(
            tensor.global_shape
        )
    for rank in run_on_mesh(drawn, config, engine, dp=dp, tp=tp):
        assert set(worst_differences(whole, rank, prefix="model.").values()) == {0.0}
