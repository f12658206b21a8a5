"""Every number of a parallel step against one process: the project's first law.

Each test says which fault it would show. The full matrix of meshes, families and accumulation counts is
``benchmarks/parity.py``; this is its covering subset.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import tp2d_fsdp2.engine
from tp2d_fsdp2.testing import run_engine
from tp2d_mesh import Mesh
from tp2d_mesh.parity import TINY, EngineRun, random_batches, reference_run, tiny_model, worst_differences
from tp2d_mesh.testing import run_on_mesh

SGD = {"precision": "fp64", "optimizer": "sgd", "learning_rate": 0.1}


def one_float64_step(family: str, folder: Path, **model_changes: Any) -> tuple[Any, list, Any]:
    """A saved model, one ragged global batch, and what one process makes of it with SGD."""
    model = tiny_model(family, dtype=torch.float64, **model_changes)
    model.save_pretrained(folder)
    batches = random_batches(steps=1, rows=8, seq_length=16, vocab_size=TINY["vocab_size"])
    reference = reference_run(model, batches, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    return model.config, batches, reference


@pytest.mark.parametrize(
    ("family", "dp", "tp", "accumulation"),
    [
        ("qwen2", 2, 2, 2),
        ("llama", 1, 4, 1),
        ("qwen3", 2, 2, 4),
        ("gemma3_text", 2, 2, 1),
        ("gemma3_text", 1, 2, 2),
        ("qwen3", 1, 1, 1),
        ("llama", 4, 1, 1),
        ("qwen2", 2, 1, 4),
        ("olmo2", 2, 2, 2),
    ],
)
def test_float64_gradients_and_weights_equal_one_process(
    family: str, dp: int, tp: int, accumulation: int, tmp_path: Path
) -> None:
    """Shows a missing, doubled or misplaced reduction, however small: float64 leaves no rounding to hide in."""
    config, batches, expected = one_float64_step(family, tmp_path)
    bound = 1e-6 if family.startswith("gemma") else 1e-10  # Gemma's norms compute in float32 whatever they are given
    runs = run_on_mesh(run_engine, config, tmp_path, batches, accumulation=accumulation, options=SGD, dp=dp, tp=tp)
    for found in runs:
        gradients = worst_differences(expected.gradients, found.gradients, prefix="grad.")
        weights = worst_differences(expected.weights, found.weights, prefix="model.")
        assert max(gradients.values()) < bound, gradients
        assert max(weights.values()) < bound, weights
        assert found.norms == pytest.approx(expected.norms, rel=bound)
        assert found.losses == pytest.approx(expected.losses, rel=bound)


def run_without_partial_sums(mesh: Mesh, *args: Any, **options: Any) -> EngineRun:
    tp2d_fsdp2.engine.sum_partial_gradients = lambda *_: None
    return run_engine(mesh, *args, **options)


def test_without_the_q_norm_reduction_parity_fails(tmp_path: Path) -> None:
    """Shows that the comparison itself can fail: the loss stays right, the gradients of q_norm and k_norm do not."""
    config, batches, expected = one_float64_step("qwen3", tmp_path)
    options = {"accumulation": 2, "options": SGD}
    for found in run_on_mesh(run_without_partial_sums, config, tmp_path, batches, **options, dp=2, tp=2):
        gradients = worst_differences(expected.gradients, found.gradients, prefix="grad.")
        wrong = {name for name, difference in gradients.items() if difference > 1e-10}
        norms = {name for name in gradients if "q_norm" in name or "k_norm" in name}
        assert wrong and wrong <= norms, wrong
        assert max(gradients[name] for name in wrong) > 0.1, gradients
        assert found.losses == pytest.approx(expected.losses, rel=1e-10)


@pytest.mark.parametrize(
    ("family", "dp", "tp", "accumulation"),
    [("qwen2", 2, 2, 2), ("qwen3", 1, 4, 1), ("gemma3_text", 2, 2, 4), ("llama", 2, 1, 1)],
)
def test_float32_losses_of_twenty_steps(family: str, dp: int, tp: int, accumulation: int, tmp_path: Path) -> None:
    """Shows what only many steps show: optimizer state, clipping and the learning rate applied wrongly."""
    model = tiny_model(family, dtype=torch.float32)
    model.save_pretrained(tmp_path)
    batches = random_batches(steps=20, rows=8, seq_length=16, vocab_size=TINY["vocab_size"])
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    expected = reference_run(model, batches, optimizer=adamw, max_grad_norm=0.5)
    options = {"learning_rate": 1e-3, "weight_decay": 0.01, "max_grad_norm": 0.5}
    runs = run_on_mesh(
        run_engine, model.config, tmp_path, batches, accumulation=accumulation, options=options, dp=dp, tp=tp
    )
    for found in runs:
        assert max(abs(a - b) for a, b in zip(found.losses, expected.losses, strict=True)) < 1e-5
        assert found.norms == pytest.approx(expected.norms, rel=1e-4)


def test_padding_row_of_the_embedding_gets_no_gradient_where_it_lies_on_a_later_rank(tmp_path: Path) -> None:
    """Shows a padding index that is not counted from the rank's first row: it would freeze another token's row."""
    config, batches, expected = one_float64_step("llama", tmp_path, pad_token_id=70)
    assert not expected.gradients["model.embed_tokens.weight"][70].any()
    for found in run_on_mesh(run_engine, config, tmp_path, batches, accumulation=1, options=SGD, tp=4):
        gradients = worst_differences(expected.gradients, found.gradients, prefix="grad.")
        assert max(gradients.values()) < 1e-10, gradients


def test_a_rank_without_any_token_to_predict(tmp_path: Path) -> None:
    """Shows a mean over each rank's own tokens: here dp rank 1 has none, which makes such a mean NaN."""
    model = tiny_model("qwen3", dtype=torch.float64)
    model.save_pretrained(tmp_path)
    batches = random_batches(steps=1, rows=4, seq_length=16, vocab_size=TINY["vocab_size"])
    batches[0]["labels"][2:] = -100
    expected = reference_run(model, batches, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    for found in run_on_mesh(run_engine, model.config, tmp_path, batches, accumulation=1, options=SGD, dp=2, tp=2):
        gradients = worst_differences(expected.gradients, found.gradients, prefix="grad.")
        assert max(gradients.values()) < 1e-10, gradients
        assert found.losses == pytest.approx(expected.losses, rel=1e-10)
