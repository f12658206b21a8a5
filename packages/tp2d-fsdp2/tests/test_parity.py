"""Every number of a parallel step against one process: the project's first law.

Each test says which fault it would show. The full matrix of meshes, families and accumulation counts is
`benchmarks/parity.py`; this is its covering subset.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import tp2d_fsdp2.engine
from tp2d_fsdp2.testing import run_engine
from tp2d_mesh import IGNORED, EngineSpec, Mesh
from tp2d_mesh.testing import run_on_mesh
from tp2d_mesh.testing.parity import (
    TINY,
    Batch,
    EngineRun,
    Reference,
    random_batches,
    reference_run,
    tiny_model,
    worst_differences,
)

SGD = EngineSpec(precision="fp64", optimizer="sgd", learning_rate=0.1, max_grad_norm=None)
ADAMW = EngineSpec(learning_rate=1e-3, weight_decay=0.01, max_grad_norm=0.5)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A saved model, global batches, and what one process makes of them."""

    config: Any
    folder: Path
    batches: list[Batch]
    expected: Reference

    def run(
        self,
        spec: EngineSpec,
        *,
        accumulation: int,
        dp: int = 1,
        tp: int = 1,
        fn: Any = run_engine,
    ) -> list[EngineRun]:
        """The same training on a mesh; every rank's numbers."""
        return run_on_mesh(fn, spec, self.config, self.folder, self.batches, accumulation=accumulation, dp=dp, tp=tp)


def ragged(steps: int, *, rows: int = 8) -> list[Batch]:
    return random_batches(steps=steps, rows=rows, seq_length=16, vocab_size=TINY["vocab_size"])


def float64_step(family: str, folder: Path, batches: list[Batch], **model_changes: Any) -> Case:
    """One plain SGD step in float64."""
    model = tiny_model(family, dtype=torch.float64, **model_changes)
    model.save_pretrained(folder)
    expected = reference_run(model, batches, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    return Case(config=model.config, folder=folder, batches=batches, expected=expected)


@pytest.fixture(scope="module")
def one_step(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Case]:
    """One step of a family on one ragged global batch; made once."""
    return cache(lambda family: float64_step(family, tmp_path_factory.mktemp(family), ragged(1)))


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
    family: str, dp: int, tp: int, accumulation: int, one_step: Callable[[str], Case]
) -> None:
    """Shows a missing, doubled or misplaced reduction, however small: float64 leaves no rounding to hide in."""
    case = one_step(family)
    expected = case.expected
    bound = 1e-6 if family.startswith("gemma") else 1e-10  # Gemma's norms compute in float32 whatever they are given
    for found in case.run(SGD, accumulation=accumulation, dp=dp, tp=tp):
        gradients = worst_differences(expected.gradients, found.gradients, prefix="grad.")
        weights = worst_differences(expected.weights, found.weights, prefix="model.")
        assert max(gradients.values()) < bound, gradients
        assert max(weights.values()) < bound, weights
        assert found.norms == pytest.approx(expected.norms, rel=bound)
        assert found.losses == pytest.approx(expected.losses, rel=bound)


WHOLE_GRAPHS = {"compile": True, "compile_backend": "aot_eager"}  # traced and split as ever, with the kernels of eager


@pytest.mark.parametrize(
    ("family", "dp", "tp", "accumulation", "options"),
    [
        ("qwen3", 2, 2, 4, {"gather_once": False}),
        ("qwen2", 2, 2, 4, {"gather_once": True}),
        ("qwen3", 2, 2, 2, {"activation_checkpointing": "selective"}),
        ("olmo2", 1, 2, 1, {"activation_checkpointing": "full"}),
        ("llama", 1, 1, 2, {"activation_checkpointing": "selective"}),
        ("qwen3", 1, 2, 2, WHOLE_GRAPHS),
        ("gemma3_text", 2, 1, 2, WHOLE_GRAPHS | {"activation_checkpointing": "selective", "gather_once": True}),
        ("qwen2", 1, 2, 1, WHOLE_GRAPHS | {"activation_checkpointing": "full"}),
    ],
    ids=str,
)
def test_no_option_of_speed_or_memory_changes_a_gradient(
    family: str, dp: int, tp: int, accumulation: int, options: dict, one_step: Callable[[str], Case]
) -> None:
    """Shows a sum over tp that recomputation or tracing loses or repeats, and gradients kept over from a step."""
    case = one_step(family)
    bound = 1e-6 if family.startswith("gemma") else 1e-10
    for found in case.run(replace(SGD, **options), accumulation=accumulation, dp=dp, tp=tp):
        gradients = worst_differences(case.expected.gradients, found.gradients, prefix="grad.")
        weights = worst_differences(case.expected.weights, found.weights, prefix="model.")
        assert max(gradients.values()) < bound, gradients
        assert max(weights.values()) < bound, weights


def run_without_partial_sums(mesh: Mesh, *args: Any, **options: Any) -> EngineRun:
    with pytest.MonkeyPatch.context() as patch:  # the process may serve other tests
        patch.setattr(tp2d_fsdp2.engine, "sum_partial_gradients", lambda *_: None)
        return run_engine(mesh, *args, **options)


def test_without_the_q_norm_reduction_parity_fails(one_step: Callable[[str], Case]) -> None:
    """Shows that the comparison itself can fail: the loss stays right, the gradients of q_norm and k_norm do not."""
    case = one_step("qwen3")
    expected = case.expected
    for found in case.run(SGD, accumulation=2, dp=2, tp=2, fn=run_without_partial_sums):
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
    batches = ragged(20)
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    expected = reference_run(model, batches, optimizer=adamw, max_grad_norm=0.5)
    case = Case(config=model.config, folder=tmp_path, batches=batches, expected=expected)
    for found in case.run(ADAMW, accumulation=accumulation, dp=dp, tp=tp):
        assert max(abs(a - b) for a, b in zip(found.losses, expected.losses, strict=True)) < 1e-5
        assert found.norms == pytest.approx(expected.norms, rel=1e-4)


def test_padding_row_of_the_embedding_gets_no_gradient_where_it_lies_on_a_later_rank(tmp_path: Path) -> None:
    """Shows a padding index that is not counted from the rank's first row: it would freeze another token's row."""
    case = float64_step("llama", tmp_path, ragged(1), pad_token_id=70)
    assert not case.expected.gradients["model.embed_tokens.weight"][70].any()
    for found in case.run(SGD, accumulation=1, tp=4):
        gradients = worst_differences(case.expected.gradients, found.gradients, prefix="grad.")
        assert max(gradients.values()) < 1e-10, gradients


def test_a_rank_without_any_token_to_predict(tmp_path: Path) -> None:
    """Shows a mean over each rank's own tokens: here dp rank 1 has none, which makes such a mean NaN."""
    batches = ragged(1, rows=4)
    batches[0]["labels"][2:] = IGNORED
    case = float64_step("qwen3", tmp_path, batches)
    for found in case.run(SGD, accumulation=1, dp=2, tp=2):
        gradients = worst_differences(case.expected.gradients, found.gradients, prefix="grad.")
        assert max(gradients.values()) < 1e-10, gradients
        assert found.losses == pytest.approx(case.expected.losses, rel=1e-10)
