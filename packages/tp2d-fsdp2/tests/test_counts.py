"""The engine's collectives, counted, against `tp2d_mesh.cost`: one too many is as wrong as a byte too few.

A small part of `benchmarks/counts.py`, and the proof that a fake process group counts what a real one does.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
import tp2d_mesh.model.recomputation
from tp2d_fsdp2 import FSDP2Engine
from tp2d_fsdp2.traffic import describe_step
from tp2d_mesh import EngineSpec, Layout, Mesh, build_skeleton, plan_model, resolve_precision
from tp2d_mesh.cost import step_traffic, totals
from tp2d_mesh.testing import run_on_mesh
from tp2d_mesh.testing.counted import counted, fake_mesh
from tp2d_mesh.testing.parity import Batch, random_batches, tiny_model

ROWS, SEQ, LAYERS = 2, 16, 3
SPEC = EngineSpec(gather_once=False, compile=False)
COMPILED = replace(SPEC, compile=True, compile_backend="aot_eager")
ONCE = replace(SPEC, gather_once=True)

Totals = dict[tuple[str, str], tuple[int, int]]


def tiny_config(family: str) -> Any:
    """Sizes that every tp rank holds equally much of."""
    sizes = {"vocab_size": 96, "intermediate_size": 48, "num_attention_heads": 8, "num_key_value_heads": 8}
    return tiny_model(family, dtype=torch.float32, num_hidden_layers=LAYERS, **sizes).config


def micro_batches(accumulation: int) -> list[Batch]:
    return random_batches(steps=accumulation, rows=ROWS, seq_length=SEQ, vocab_size=96)


def count_step(mesh: Mesh, spec: EngineSpec, config: Any, *, accumulation: int) -> tuple[Totals, int]:
    """Totals of a step, and how many all-reduces of activations it has."""
    engine = FSDP2Engine(spec, config=config, weights=None, mesh=mesh)
    with counted(mesh) as seen:
        engine.train_step(micro_batches(accumulation))
    engine.close()
    return seen.totals(), seen.calls("all_reduce", axis="tp", shape=(ROWS, SEQ, config.hidden_size))


def expected(spec: EngineSpec, config: Any, *, dp: int, tp: int, accumulation: int) -> Totals:
    model = build_skeleton(config, spec=spec, dtype=torch.float32)
    step = describe_step(
        model,
        plan=plan_model(model, tp=tp),
        layout=Layout(dp=dp, tp=tp),
        precision=resolve_precision(spec.precision, torch.device("cpu")),
        batch=ROWS,
        seq=SEQ,
        micro_batches=accumulation,
        gather_once=bool(spec.gather_once),
    )
    return totals(step_traffic(step))


@pytest.mark.parametrize(
    ("family", "spec", "accumulation"),
    [
        ("llama", SPEC, 1),
        ("qwen2", replace(SPEC, precision="bf16", activation_checkpointing="full"), 4),
        ("qwen3", replace(ONCE, activation_checkpointing="selective"), 4),
    ],
)
def test_a_real_mesh_calls_what_the_formulas_say(family: str, spec: EngineSpec, accumulation: int) -> None:
    """Shows a collective or a byte more or less than planned, on any rank."""
    config = tiny_config(family)
    wanted = expected(spec, config, dp=2, tp=2, accumulation=accumulation)
    for found, _ in run_on_mesh(count_step, spec, config, dp=2, tp=2, accumulation=accumulation):
        assert found == wanted


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize(("dp", "tp"), [(1, 1), (128, 1), (1, 8), (2, 2), (128, 8)])
@pytest.mark.parametrize(
    ("spec", "accumulation"), [(SPEC, 1), (SPEC, 4), (ONCE, 4), (replace(SPEC, precision="bf16"), 1)]
)
def test_any_mesh_calls_what_the_formulas_say(
    family: str, dp: int, tp: int, spec: EngineSpec, accumulation: int
) -> None:
    """Shows the same on meshes that no machine here has: padding of short shards, a group of all ranks."""
    config = tiny_config(family)
    with fake_mesh(dp=dp, tp=tp) as mesh:
        found, _ = count_step(mesh, spec, config, accumulation=accumulation)
    assert found == expected(spec, config, dp=dp, tp=tp, accumulation=accumulation)


@pytest.mark.parametrize("spec", [SPEC, COMPILED], ids=["eager", "compiled"])
@pytest.mark.parametrize("recomputation", ["none", "selective", "full"])
def test_a_layer_sums_its_activations_four_times(spec: EngineSpec, recomputation: str) -> None:
    """Shows an input that enters tp once per projection, or sums that recomputation repeats."""
    with fake_mesh(dp=1, tp=2) as mesh:
        changed = replace(spec, activation_checkpointing=recomputation)
        _, calls = count_step(mesh, changed, tiny_config("llama"), accumulation=1)
    assert calls == 4 * LAYERS + 1  # and the embedding's; the head's has another shape


def test_gathered_once_a_unit_is_gathered_and_reduced_once_per_step() -> None:
    """Shows a unit that a micro-batch drops or reduces: embedding, layers, norm with head are 2 + LAYERS units."""
    with fake_mesh(dp=2, tp=1) as mesh:
        found, _ = count_step(mesh, ONCE, tiny_config("llama"), accumulation=4)
    assert found["all_gather", "dp"][0] == found["reduce_scatter", "dp"][0] == 2 + LAYERS


def test_sums_that_are_not_kept_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shows that the comparison can fail: without the sums of forward, recomputation repeats one of a layer."""
    monkeypatch.setattr(tp2d_mesh.model.recomputation, "_SUMS", frozenset())
    spec, config = replace(SPEC, activation_checkpointing="full"), tiny_config("llama")
    with fake_mesh(dp=1, tp=2) as mesh:
        found, calls = count_step(mesh, spec, config, accumulation=1)
    assert calls > 4 * LAYERS + 1
    assert found != expected(spec, config, dp=1, tp=2, accumulation=1)
