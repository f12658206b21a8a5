"""A step whose gradient is not finite: nothing of it remains, and the host does not wait to know."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tp2d_fsdp2 import FSDP2Engine, engine
from tp2d_mesh import PRECISIONS, EngineSpec, Mesh
from tp2d_mesh.testing import run_on_mesh
from tp2d_mesh.testing.parity import TINY, Batch, micro_batches, random_batches, reference_run, tiny_model
from tp2d_mesh.testing.skipped import HostReads, Poison, SkippedRun, skipped_run

BATCHES = random_batches(steps=5, rows=8, seq_length=16, vocab_size=TINY["vocab_size"])
SPOILT = {0: math.inf, 3: math.nan}
GOOD = [batch for step, batch in enumerate(BATCHES) if step not in SPOILT]

ADAMW = EngineSpec(learning_rate=1e-2, weight_decay=0.01, max_grad_norm=0.5)
SGD = EngineSpec(optimizer="sgd", learning_rate=0.1, max_grad_norm=None)

LAST = Poison(steps=SPOILT, module="model.layers.1.mlp.down_proj", rank=3)
PARTIAL = Poison(steps=SPOILT, module="model.layers.0.self_attn.q_norm", rank=1)


def run(mesh: Mesh, spec: EngineSpec, config: Any, folder: Path, batches: list[Batch], poison: Poison) -> SkippedRun:
    one = FSDP2Engine(spec, config=config, weights=folder, mesh=mesh)
    return skipped_run(one, batches, accumulation=2, poison=poison)


@pytest.mark.parametrize(
    ("spec", "poison", "dp"),
    [(ADAMW, LAST, 2), (replace(SGD, max_grad_norm=0.5), LAST, 2), (replace(SGD, precision="fp64"), PARTIAL, 1)],
    ids=["adamw", "sgd", "partial"],
)
def test_a_step_that_is_not_finite_leaves_no_trace(spec: EngineSpec, poison: Poison, dp: int, tmp_path: Path) -> None:
    """Shows a decision of one rank alone, NaN that clipping spreads, a moment that decays, a step that is counted.

    The first step is spoilt before there are moments, and another between good ones. What follows equals, bit for
    bit, a run without these batches, and one process without them.
    """
    model = tiny_model("qwen3", dtype=PRECISIONS[spec.precision].master)
    model.save_pretrained(tmp_path)
    stock: Any = torch.optim.AdamW if spec.optimizer == "adamw" else torch.optim.SGD
    decay = {"weight_decay": spec.weight_decay} if spec.optimizer == "adamw" else {}
    optimizer = stock(model.parameters(), lr=spec.learning_rate, **decay)
    expected = reference_run(model, GOOD, optimizer=optimizer, max_grad_norm=spec.max_grad_norm)
    spoilt = run_on_mesh(run, spec, model.config, tmp_path, BATCHES, poison, dp=dp, tp=2)
    clean = run_on_mesh(run, spec, model.config, tmp_path, GOOD, replace(poison, steps={}), dp=dp, tp=2)
    for found, without in zip(spoilt, clean, strict=True):
        assert found.skipped == [step in SPOILT for step in range(len(BATCHES))]
        assert [not math.isfinite(norm) for norm in found.norms] == found.skipped
        assert found.changed == set()
        assert (found.losses, found.state, found.extra) == (without.losses, without.state, without.extra)
        assert max(abs(a - b) for a, b in zip(found.losses, expected.losses, strict=True)) < 1e-5
        assert not any(without.skipped)


def host_reads(mesh: Mesh, config: Any, changes: list[dict]) -> list[tuple[int, int]]:
    """Values the host reads in a step, after a first one that may set things up; and those read by the model's code."""
    rows = micro_batches(BATCHES[0], layout=mesh.layout, rank=mesh.rank, accumulation=2)
    counts = []
    for change in changes:
        one = half_or_not(replace(ADAMW, **change), config=config, mesh=mesh)
        one.train_step(rows)
        with pytest.MonkeyPatch.context() as patch, HostReads() as all_reads:
            own = HostReads()
            patch.setattr(one.model, "forward", own.within(one.model.forward))
            one.train_step(rows)
        counts.append((all_reads.count, own.count))
        one.close()
    return counts


def half_or_not(spec: EngineSpec, *, config: Any, mesh: Mesh) -> FSDP2Engine:
    """An engine; fp16 is refused on a CPU, where it is slow, and here the refusal is taken away."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "resolve_precision", lambda name, _: PRECISIONS[name])
        return FSDP2Engine(spec, config=config, weights=None, mesh=mesh)


def test_nothing_is_read_on_the_host_in_a_step() -> None:
    """Shows an `.item()` or an `if tensor`: on a GPU each would make the host wait until the device has caught up.

    transformers' mask code looks for packed rows, once per micro-batch, where its attention is asked for.
    """
    config = tiny_model("qwen3", dtype=torch.float32).config
    changes = [{"precision": name} for name in ("fp32", "bf16", "fp16")] + [{"attn_implementation": "sdpa"}]
    expected = [(0, 0), (0, 0), (0, 0), (2, 2)]
    assert run_on_mesh(host_reads, config, changes, dp=2, tp=2) == [expected] * 4


def fp16_run(mesh: Mesh, config: Any, scale: float) -> SkippedRun:
    one = half_or_not(replace(ADAMW, precision="fp16"), config=config, mesh=mesh)
    one.load_extra_state({"optimizer_steps": 0, "loss_scale": {"value": scale, "quiet_steps": 0}})
    poison = Poison(steps={1: math.inf}, module="model.layers.1.mlp.down_proj", rank=0)
    return skipped_run(one, BATCHES[:3], accumulation=1, poison=poison)


@pytest.mark.parametrize(("scale", "later", "counted"), [(8.0, 4.0, False), (1.0, 1.0, True)])
def test_an_overflow_that_lowers_the_scale_of_fp16_is_not_counted(scale: float, later: float, counted: bool) -> None:
    """Shows a healthy start of fp16 reported as trouble, or a ruined fp16 run that nobody hears of."""
    config = tiny_model("qwen3", dtype=torch.float32).config
    for found in run_on_mesh(fp16_run, config, scale, tp=2):
        assert found.skipped == [False, counted, False]
        assert found.changed == set()
        assert found.extra["optimizer_steps"] == 2 and found.extra["loss_scale"]["value"] == later
