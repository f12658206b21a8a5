"""Packed rows under the engine: what a row's documents compute alone, nothing more and nothing less.

The full matrix is `benchmarks/parity_packed.py`; this is its covering subset.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tp2d_fsdp2 import FSDP2Engine
from tp2d_fsdp2.testing import run_engine
from tp2d_mesh import IGNORED, EngineSpec, Mesh
from tp2d_mesh.model.attention.documents import DocumentEnds, documents_of
from tp2d_mesh.model.attention.function import ATTENTION
from tp2d_mesh.testing import run_on_mesh
from tp2d_mesh.testing.packed_parity import documents, documents_reference, flash_attention_in_torch, packed_batch
from tp2d_mesh.testing.parity import TINY, Batch, EngineRun, Reference, micro_batches, tiny_model, worst_differences

SGD = EngineSpec(precision="fp64", optimizer="sgd", learning_rate=0.1, max_grad_norm=None)
BATCH = packed_batch(vocab_size=TINY["vocab_size"])


Saved = tuple[Any, Path, Reference]


def one_step(family: str, folder: Path, **changes: Any) -> Saved:
    """A saved model, and what the documents of `BATCH`, each alone, make of it in one process."""
    model = tiny_model(family, dtype=torch.float64, **changes)
    model.save_pretrained(folder)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    return model.config, folder, documents_reference(model, [BATCH], optimizer=sgd)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Saved]:
    """`one_step` of a family as it comes; made once."""
    return cache(lambda family: one_step(family, tmp_path_factory.mktemp(family)))


def worst(expected: Reference, found: EngineRun) -> float:
    """Of the loss, every gradient and every weight of this rank."""
    gradients = worst_differences(expected.gradients, found.gradients, prefix="grad.")
    weights = worst_differences(expected.weights, found.weights, prefix="model.")
    return max(*gradients.values(), *weights.values(), abs(found.losses[0] / expected.losses[0] - 1))


@pytest.mark.parametrize(
    ("family", "changes", "dp", "tp", "options"),
    [
        ("llama", {}, 2, 2, {}),
        ("qwen3", {}, 1, 1, {"attn_implementation": "eager"}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}, 2, 2, {}),
        ("gemma3_text", {"sliding_window": 4}, 2, 2, {"activation_checkpointing": "full"}),
    ],
)
def test_packed_rows_equal_their_documents_alone(
    family: str, changes: dict, dp: int, tp: int, options: dict, tmp_path: Path
) -> None:
    """Shows attention or a window across a boundary, positions that run on or are one row's, a label that crosses."""
    config, _, expected = one_step(family, tmp_path, **changes)
    exact = family != "gemma3_text" and "attn_implementation" not in options
    bound = 1e-10 if exact else 1e-6  # Gemma's norms and eager's softmax compute in float32 whatever they are given
    accumulation = 8 // dp // 2
    spec = replace(SGD, **options)
    for found in run_on_mesh(run_engine, spec, config, tmp_path, [BATCH], accumulation=accumulation, dp=dp, tp=tp):
        assert worst(expected, found) < bound


@pytest.mark.parametrize("fault", ["no positions", "positions that run on", "one row's positions"])
def test_without_the_boundaries_parity_fails(fault: str, saved: Callable[[str], Saved]) -> None:
    """Shows that the comparison itself can fail: the same rows, their boundaries lost in each way they can be."""
    config, folder, expected = saved("llama")
    positions = BATCH["position_ids"]
    spoilt = {
        "no positions": None,
        "positions that run on": torch.arange(24).expand(8, -1).contiguous(),
        "one row's positions": positions[:1].expand(8, -1).contiguous(),
    }[fault]
    batch = {k: v for k, v in BATCH.items() if k != "position_ids"}
    batch |= {} if spoilt is None else {"position_ids": spoilt}
    for found in run_on_mesh(run_engine, SGD, config, folder, [batch], accumulation=1):
        gradients = worst_differences(expected.gradients, found.gradients, prefix="grad.")
        assert gradients["model.layers.0.self_attn.q_proj.weight"] > 1e-2


class Carrying(dict[str, torch.Tensor]):
    """A batch as the data package's loader hands it out, with the ends of its documents."""

    documents: DocumentEnds


def run_carried(mesh: Mesh, config: Any, folder: Path) -> tuple[str, float, float]:
    """Loss and norm of a step whose positions tell of no document: the ends are those that the batch carries."""
    engine = FSDP2Engine(SGD, config=config, weights=folder, mesh=mesh)
    batch = Carrying(BATCH)
    batch.documents = documents_of(BATCH["position_ids"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tp2d_mesh.model.attention.documents.documents_of", None)
        stats = engine.train_step([batch])
    name = engine.model.config._attn_implementation
    engine.close()
    return name, float(stats.loss), float(stats.grad_norm)


def test_the_ends_that_a_batch_carries_are_those_of_our_attention(saved: Callable[[str], Saved]) -> None:
    """Shows a family that falls back to a mask unnoticed, or ends looked for although they came with the batch."""
    config, folder, expected = saved("llama")
    for name, loss, norm in run_on_mesh(run_carried, config, folder, tp=2):
        assert name == ATTENTION
        assert (loss, norm) == pytest.approx((expected.losses[0], expected.norms[0]), rel=1e-10)


def run_with_flash(mesh: Mesh, config: Any, folder: Path, batch: Batch) -> dict[str, torch.Tensor]:
    engine = FSDP2Engine(SGD, config=config, weights=folder, mesh=mesh)
    engine.model.config._attn_implementation = "flash_attention_2"
    with flash_attention_in_torch():
        stats = engine.train_step(micro_batches(batch, layout=mesh.layout, rank=mesh.rank, accumulation=2))
    engine.close()
    return {"loss": stats.loss, "norm": stats.grad_norm, "positions": stats.positions}


def test_flash_attention_is_given_the_documents_ends(saved: Callable[[str], Saved]) -> None:
    """Shows rows laid end to end wrongly; the path is transformers' own, only its kernels are plain torch here."""
    config, folder, expected = saved("qwen2")
    for found in run_on_mesh(run_with_flash, config, folder, BATCH, dp=2, tp=2):
        assert float(found["loss"]) == pytest.approx(expected.losses[0], rel=1e-10)
        assert float(found["norm"]) == pytest.approx(expected.norms[0], rel=1e-10)
        assert int(found["positions"]) == BATCH["labels"].numel()


def padded(batch: Batch) -> Batch:
    """The same documents, each in a row of its own."""
    rows = list(documents(batch))
    ids, labels = torch.zeros(len(rows), 24, dtype=torch.int64), torch.full((len(rows), 24), IGNORED)
    for i, (tokens, targets) in enumerate(rows):
        ids[i, : tokens.shape[1]], labels[i, : tokens.shape[1]] = tokens[0], targets[0]
    return {"input_ids": ids, "labels": labels}


def both_ways(mesh: Mesh, config: Any, folder: Path, spec: EngineSpec) -> list[float]:
    """Loss of evaluation, loss and norm of a step; of packed rows, then of padded ones."""
    numbers = []
    for batch in (BATCH, padded(BATCH)):
        engine = FSDP2Engine(spec, config=config, weights=folder, mesh=mesh)
        loss_sum, tokens = engine.evaluate(batch)
        stats = engine.train_step([batch])
        numbers += [float(loss_sum / tokens), float(stats.loss), float(stats.grad_norm)]
        engine.close()
    return numbers


@pytest.mark.parametrize(("precision", "rel"), [("fp32", 1e-5), ("bf16", 2e-2), ("bf16-pure", 2e-2)])
def test_packed_and_padded_rows_agree_in_every_precision(
    precision: str, rel: float, saved: Callable[[str], Saved]
) -> None:
    """Shows a mask or positions that a cast spoils; bf16 has 8 bits, so sums in another order differ by 2^-8 each."""
    config, folder, _ = saved("qwen3")
    spec = EngineSpec(precision=precision, max_grad_norm=None)
    for numbers in run_on_mesh(both_ways, config, folder, spec, dp=1, tp=2):
        assert numbers[:3] == pytest.approx(numbers[3:], rel=rel)


def compiled(mesh: Mesh, config: Any, folder: Path) -> list[float]:
    """Loss and norm of a step on padded rows, then of one on packed rows, by one engine whose weights stay."""
    spec = EngineSpec(
        compile=True, activation_checkpointing="full", optimizer="sgd", learning_rate=0.0, max_grad_norm=None
    )
    engine = FSDP2Engine(spec, config=config, weights=folder, mesh=mesh)
    steps = [engine.train_step([batch]) for batch in (padded(BATCH), BATCH)]
    engine.close()
    return [float(number) for step in steps for number in (step.loss, step.grad_norm)]


def test_packed_rows_agree_when_layers_are_compiled(tmp_path: Path) -> None:
    """Shows a compiled layer that keeps the mask, or the lack of one, of the batch it was traced with."""
    config, _, expected = one_step("qwen2", tmp_path, num_hidden_layers=1)
    (numbers,) = run_on_mesh(compiled, config, tmp_path, timeout=300.0, fresh=True)
    assert numbers == pytest.approx([expected.losses[0], expected.norms[0]] * 2, rel=1e-5)


def refused(mesh: Mesh, config: Any) -> str:
    engine = FSDP2Engine(EngineSpec(), config=config, weights=None, mesh=mesh)
    engine.model.forward = None  # refused before anything is computed
    with pytest.raises(ValueError) as error:
        engine.train_step([BATCH])
    engine.close()
    return str(error.value)


def test_packed_rows_of_an_unproven_family_are_refused_by_name() -> None:
    config = tiny_model("bloom", dtype=torch.float32).config
    (message,) = run_on_mesh(refused, config)
    assert message.startswith("model type 'bloom' has not been shown to keep the documents")
