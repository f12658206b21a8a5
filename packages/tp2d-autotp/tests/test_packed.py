"""Packed rows under DeepSpeed: what a row's documents compute alone, nothing more and nothing less.

The full matrix is `benchmarks/parity_packed.py`; this is its covering subset.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tp2d_autotp import AutoTPEngine, AutoTPSpec
from tp2d_autotp.testing import run_engine
from tp2d_mesh import IGNORED, Mesh
from tp2d_mesh.model.attention.function import ATTENTION
from tp2d_mesh.testing import run_on_mesh
from tp2d_mesh.testing.packed_parity import documents_reference, packed_batch
from tp2d_mesh.testing.parity import TINY, Reference, tiny_model, worst_differences

SGD = AutoTPSpec(optimizer="sgd", learning_rate=0.1, max_grad_norm=None)
BATCH = packed_batch(vocab_size=TINY["vocab_size"])


def one_step(family: str, folder: Path, **changes: Any) -> tuple[Any, Reference]:
    """A saved model, and what the documents of `BATCH`, each alone, make of it in one process, in float64."""
    tiny_model(family, dtype=torch.float32, **changes).save_pretrained(folder)
    model = tiny_model(family, dtype=torch.float32, **changes).double()
    return model.config, documents_reference(model, [BATCH], optimizer=torch.optim.SGD(model.parameters(), lr=0.1))


@pytest.mark.parametrize(
    ("family", "changes", "dp", "tp", "options"),
    [
        ("llama", {}, 1, 1, {"zero_stage": 2}),
        ("qwen3", {}, 2, 2, {"zero_stage": 2, "activation_checkpointing": "full"}),
        ("gemma3_text", {"sliding_window": 4}, 2, 2, {"zero_stage": 1}),
    ],
)
def test_packed_rows_equal_their_documents_alone(
    family: str, changes: dict, dp: int, tp: int, options: dict, tmp_path: Path
) -> None:
    """Shows attention or a window across a boundary, positions that run on or are one row's, a label that crosses."""
    config, expected = one_step(family, tmp_path, **changes)
    spec = replace(SGD, **options)
    for found in run_on_mesh(run_engine, spec, config, tmp_path, [BATCH], accumulation=2, dp=dp, tp=tp):
        gradients = worst_differences(expected.gradients, found.gradients, prefix="grad.")
        weights = worst_differences(expected.weights, found.weights, prefix="model.")
        assert max(*gradients.values(), *weights.values()) < 1e-5
        assert found.losses == pytest.approx(expected.losses, rel=1e-5)


def test_without_the_boundaries_parity_fails(tmp_path: Path) -> None:
    """Shows that the comparison itself can fail: the same rows, with positions that run on."""
    config, expected = one_step("llama", tmp_path)
    batch = BATCH | {"position_ids": torch.arange(24).expand(8, -1).contiguous()}
    for found in run_on_mesh(run_engine, SGD, config, tmp_path, [batch], accumulation=1):
        gradients = worst_differences(expected.gradients, found.gradients, prefix="grad.")
        assert gradients["model.layers.0.self_attn.q_proj.weight"] > 1e-2


def evaluation(mesh: Mesh, config: Any, folder: Path) -> tuple[float, int]:
    engine = AutoTPEngine(AutoTPSpec(), config=config, weights=folder, mesh=mesh)
    assert engine.model.config._attn_implementation == ATTENTION
    loss_sum, tokens = engine.evaluate(BATCH)
    engine.close()
    return float(loss_sum), int(tokens)


def test_evaluation_keeps_documents_apart(tmp_path: Path) -> None:
    """Shows positions that reach training only."""
    config, expected = one_step("qwen2", tmp_path)
    for loss_sum, tokens in run_on_mesh(evaluation, config, tmp_path, tp=2):
        assert tokens == int((BATCH["labels"] != IGNORED).sum())
        assert loss_sum / tokens == pytest.approx(expected.losses[0], rel=1e-5)


def refused(mesh: Mesh, config: Any) -> str:
    engine = AutoTPEngine(AutoTPSpec(), config=config, weights=None, mesh=mesh)
    with pytest.raises(ValueError) as refusal:
        engine.train_step([BATCH])
    engine.close()
    return str(refusal.value)


def test_packed_rows_of_an_unproven_family_are_refused_by_name() -> None:
    config = tiny_model("bloom", dtype=torch.float32).config
    (message,) = run_on_mesh(refused, config)
    assert message.startswith("model type 'bloom' has not been shown to keep the documents")
