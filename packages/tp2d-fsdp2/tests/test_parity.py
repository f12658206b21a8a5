"""Every number of a parallel step against one process: the project's first law.

Each test says which fault it would show. The full matrix of meshes, families and accumulation counts is
``benchmarks/parity.py``; this is its covering subset.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tp2d_fsdp2 import FSDP2Engine
from tp2d_mesh import Mesh
from tp2d_mesh.parity import micro_batches, random_batches, reference_run, worst_differences
from tp2d_mesh.testing import run_on_mesh
from transformers import AutoConfig, AutoModelForCausalLM

SIZES: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 50,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 64,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def tiny_config(family: str) -> Any:
    extra = {"tie_word_embeddings": family in ("qwen2", "gemma3_text")}
    if family == "gemma3_text":
        extra |= {
            "sliding_window": 8,
            "query_pre_attn_scalar": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        }
    return AutoConfig.for_model(family, **SIZES, **extra)


def save_model(family: str, folder: Path, dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(family), dtype=dtype)
    model.save_pretrained(folder)
    return model


def engine_run(mesh: Mesh, config: Any, folder: Path, batches: list, accumulation: int, options: dict) -> dict:
    engine = FSDP2Engine(config=config, weights=folder, mesh=mesh, **options)
    gradients: dict = {}

    def remember(*_: Any) -> None:
        if not gradients:
            for name, tensor in engine.gradients().items():
                pieces = tuple(type(p)(offsets=p.offsets, tensor=p.tensor.clone()) for p in tensor.pieces)
                gradients[name] = type(tensor)(name=name, global_shape=tensor.global_shape, pieces=pieces)

    engine.optimizer.register_step_pre_hook(remember)
    losses, norms = [], []
    for batch in batches:
        stats = engine.train_step(micro_batches(batch, layout=mesh.layout, rank=mesh.rank, accumulation=accumulation))
        losses.append(float(stats.loss))
        norms.append(float(stats.grad_norm))
    weights = {n: t for n, t in engine.state().items() if n.startswith("model.")}
    return {"losses": losses, "norms": norms, "gradients": gradients, "weights": weights}


@pytest.mark.parametrize(
    ("family", "dp", "tp", "accumulation"),
    [
        ("qwen2", 2, 2, 2),
        ("llama", 1, 4, 1),
        ("qwen3", 2, 2, 4),
        ("gemma3_text", 1, 2, 2),
        ("qwen3", 1, 1, 1),
        ("llama", 4, 1, 1),
    ],
)
def test_float64_gradients_and_weights_equal_one_process(
    family: str, dp: int, tp: int, accumulation: int, tmp_path: Path
) -> None:
    """Shows a missing, doubled or misplaced reduction, however small: float64 leaves no rounding to hide in."""
    model = save_model(family, tmp_path, torch.float64)
    batches = random_batches(steps=1, rows=8, seq_length=16, vocab_size=99)
    expected = reference_run(model, batches, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    options = {"precision": "fp64", "optimizer": "sgd", "learning_rate": 0.1, "max_grad_norm": None}
    for found in run_on_mesh(engine_run, model.config, tmp_path, batches, accumulation, options, dp=dp, tp=tp):
        bound = 1e-6 if family.startswith("gemma") else 1e-10
        gradients = worst_differences(expected.gradients, found["gradients"], prefix="grad.")
        weights = worst_differences(expected.weights, found["weights"], prefix="model.")
        assert max(gradients.values()) < bound, gradients
        assert max(weights.values()) < bound, weights
        assert found["norms"] == pytest.approx(expected.norms, rel=bound)
        assert found["losses"] == pytest.approx(expected.losses, rel=bound)
