"""Every number of a parallel step against one process: the project's first law.

Each test says which fault it would show. The full matrix of meshes, families, ZeRO stages and accumulation counts is
`benchmarks/parity_autotp.py`; this is its covering subset. DeepSpeed sums and steps in float32 even what is float64,
so weights start at numbers that float32 has, and gradients agree to 5e-7 of the largest.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tp2d_autotp import AutoTPEngine, AutoTPSpec, engine, runtime
from tp2d_autotp.testing import run_engine
from tp2d_mesh import Mesh
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

SGD = AutoTPSpec(precision="fp64", optimizer="sgd", learning_rate=0.1, max_grad_norm=None)
ADAMW = AutoTPSpec(learning_rate=1e-3, weight_decay=0.01, max_grad_norm=1.0)
Inputs = tuple[Any, Path, list[Batch]]
Saved = Callable[[str], tuple[Inputs, Reference]]


def ragged(steps: int) -> list[Batch]:
    return random_batches(steps=steps, rows=8, seq_length=16, vocab_size=TINY["vocab_size"])


def float64_step(family: str, folder: Path) -> tuple[Inputs, Reference]:
    """A saved model, one ragged global batch, and what one process makes of it with SGD."""
    model = tiny_model(family, dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.float())
    model.save_pretrained(folder)
    batches = ragged(1)
    expected = reference_run(model, batches, optimizer=torch.optim.SGD(model.parameters(), 0.1))
    return (model.config, folder, batches), expected


def float32_steps(family: str, folder: Path) -> tuple[Inputs, Reference]:
    """The same for twenty steps of AdamW."""
    model = tiny_model(family, dtype=torch.float32)
    model.save_pretrained(folder)
    batches = ragged(20)
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    return (model.config, folder, batches), reference_run(model, batches, optimizer=adamw, max_grad_norm=1.0)


@pytest.fixture(scope="module")
def one_step(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """`float64_step` of a family; made once."""
    return cache(lambda family: float64_step(family, tmp_path_factory.mktemp(family)))


@pytest.fixture(scope="module")
def twenty_steps(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """`float32_steps` of a family; made once."""
    return cache(lambda family: float32_steps(family, tmp_path_factory.mktemp(family)))


def both_runs(mesh: Mesh, wide: Inputs, single: Inputs, *, accumulation: int, zero_stage: int) -> list[EngineRun]:
    """One engine after the other in the same processes, which saves starting them twice."""
    return [
        run_engine(
            mesh,
            replace(spec, zero_stage=zero_stage, gradient_accumulation_steps=accumulation),
            *inputs,
            accumulation=accumulation,
        )
        for inputs, spec in ((wide, SGD), (single, ADAMW))
    ]


@pytest.mark.parametrize(
    ("family", "dp", "tp", "zero_stage", "accumulation"),
    [
        ("qwen3", 1, 1, 1, 2),
        ("qwen2", 2, 1, 2, 4),
        ("llama", 4, 1, 1, 2),
        ("qwen3", 1, 2, 2, 2),
        ("llama", 1, 4, 2, 1),
        ("gemma3_text", 1, 4, 1, 2),
        ("qwen2", 2, 2, 1, 1),
        ("qwen3", 2, 2, 1, 4),
        ("gemma3_text", 2, 2, 2, 2),
        ("olmo2", 2, 2, 1, 2),
    ],
)
def test_a_step_and_twenty_losses_equal_one_process(
    family: str, dp: int, tp: int, zero_stage: int, accumulation: int, one_step: Saved, twenty_steps: Saved
) -> None:
    """Shows a missing, doubled or misplaced reduction, a wrong norm or clip, a loss that miscounts ragged rows."""
    (wide, expected), (single, expected20) = one_step(family), twenty_steps(family)
    runs = run_on_mesh(both_runs, wide, single, accumulation=accumulation, zero_stage=zero_stage, dp=dp, tp=tp)
    for step, twenty in runs:
        gradients = worst_differences(expected.gradients, step.gradients, prefix="grad.")
        weights = worst_differences(expected.weights, step.weights, prefix="model.")
        assert max(gradients.values()) < 5e-7, gradients
        assert max(weights.values()) < 5e-7, weights
        assert step.norms == pytest.approx(expected.norms, rel=1e-6)
        assert twenty.losses == pytest.approx(expected20.losses, abs=1e-5)
        assert twenty.norms == pytest.approx(expected20.norms, rel=1e-4)  # AdamW magnifies rounding over 20 steps


def run_without_partial_sums(mesh: Mesh, *args: Any, **options: Any) -> EngineRun:
    """The engine with specs that leave q_norm and k_norm out, as DeepSpeed's preset `qwen2` does, and no check."""
    complete = engine.tensor_parallel_section

    def preset(plan: Any) -> dict[str, Any]:
        section = complete(plan)
        specs = section["partition_config"]["layer_specs"]
        section["partition_config"]["layer_specs"] = [s for s in specs if s["partition_type"] != "skip"]
        return section

    runtime.load("cpu")
    from tp2d_autotp import zero

    with pytest.MonkeyPatch.context() as patch:  # the process may serve other tests
        patch.setattr(engine, "tensor_parallel_section", preset)
        patch.setattr(zero, "check_split", lambda *_: None)
        return run_engine(mesh, *args, **options)


def test_without_the_q_norm_reduction_parity_fails(one_step: Saved) -> None:
    """Shows that the comparison itself can fail: the loss stays right, the gradients of q_norm and k_norm do not."""
    inputs, expected = one_step("qwen3")
    for found in run_on_mesh(run_without_partial_sums, SGD, *inputs, accumulation=2, dp=1, tp=2):
        gradients = worst_differences(expected.gradients, found.gradients, prefix="grad.")
        wrong = {name for name, difference in gradients.items() if difference > 5e-7}
        norms = {name for name in gradients if "q_norm" in name or "k_norm" in name}
        assert wrong and wrong <= norms, wrong
        assert max(gradients[name] for name in wrong) > 0.1, gradients
        assert found.losses == pytest.approx(expected.losses, rel=1e-6)


def open_without_partial_sums(mesh: Mesh, config: Any) -> str:
    runtime.load("cpu")
    from deepspeed.module_inject.auto_tp import AutoTP

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AutoTP, "register_replicated_grad_hooks", lambda self, model: None)
        with pytest.raises(ValueError) as refusal:
            AutoTPEngine(AutoTPSpec(), config=config, weights=None, mesh=mesh)
    return str(refusal.value)


def test_a_reduction_that_deepspeed_does_not_install_is_refused() -> None:
    """Shows a DeepSpeed that reads `grad_allreduce` and does nothing, as versions before it did."""
    config = tiny_model("qwen3", dtype=torch.float32).config
    for message in run_on_mesh(open_without_partial_sums, config, tp=2):
        assert message.startswith("AutoTP does not sum the gradient of model.layers.0.self_attn.q_norm.weight over the")
