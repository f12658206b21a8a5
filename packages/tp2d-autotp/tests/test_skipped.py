"""A step whose gradient is not finite: nothing of it remains, as in the engine fsdp2."""

import math
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tp2d_autotp import AutoTPEngine, AutoTPSpec
from tp2d_mesh import Mesh
from tp2d_mesh.testing import run_on_mesh
from tp2d_mesh.testing.parity import TINY, Batch, micro_batches, random_batches, reference_run, tiny_model
from tp2d_mesh.testing.skipped import HostReads, Poison, SkippedRun, skipped_run, spoilt

BATCHES = random_batches(steps=5, rows=8, seq_length=16, vocab_size=TINY["vocab_size"])
SPOILT = {0: math.inf, 3: math.nan}
GOOD = [batch for step, batch in enumerate(BATCHES) if step not in SPOILT]
POISON = Poison(steps=SPOILT, module="model.layers.1.mlp.down_proj", rank=3)

ADAMW = AutoTPSpec(learning_rate=1e-2, weight_decay=0.01, max_grad_norm=0.5)


def run(mesh: Mesh, spec: AutoTPSpec, config: Any, folder: Path, batches: list[Batch], poison: Poison) -> SkippedRun:
    one = AutoTPEngine(spec, config=config, weights=folder, mesh=mesh)
    return skipped_run(one, batches, accumulation=2, poison=poison)


@pytest.mark.parametrize(
    ("spec", "bound"),
    [
        (ADAMW, 1e-5),
        (replace(ADAMW, optimizer="sgd", learning_rate=0.1, max_grad_norm=None, zero_stage=2), 1e-5),
        (replace(ADAMW, zero_stage=2, precision="bf16"), 0.1),  # 8 bits of mantissa; the rest is exact all the same
    ],
    ids=["adamw-1", "sgd-2", "bf16-2"],
)
def test_a_step_that_is_not_finite_leaves_no_trace(spec: AutoTPSpec, bound: float, tmp_path: Path) -> None:
    """Shows a decision of one rank alone, gradients kept for the next step, weights of forward that were touched.

    The first step is spoilt before there are moments, and another between good ones. What follows equals, bit for
    bit, a run without these batches, and one process without them.
    """
    model = tiny_model("qwen3", dtype=torch.float32)
    model.save_pretrained(tmp_path)
    stock: Any = torch.optim.AdamW if spec.optimizer == "adamw" else torch.optim.SGD
    decay = {"weight_decay": spec.weight_decay} if spec.optimizer == "adamw" else {}
    optimizer = stock(model.parameters(), lr=spec.learning_rate, **decay)
    expected = reference_run(model, GOOD, optimizer=optimizer, max_grad_norm=spec.max_grad_norm)
    found_by = run_on_mesh(run, spec, model.config, tmp_path, BATCHES, POISON, dp=2, tp=2)
    clean = run_on_mesh(run, spec, model.config, tmp_path, GOOD, replace(POISON, steps={}), dp=2, tp=2)
    for found, without in zip(found_by, clean, strict=True):
        assert found.skipped == [step in SPOILT for step in range(len(BATCHES))]
        assert [not math.isfinite(norm) for norm in found.norms] == found.skipped
        assert found.changed == set()
        assert (found.losses, found.state, found.extra) == (without.losses, without.state, without.extra)
        assert max(abs(a - b) for a, b in zip(found.losses, expected.losses, strict=True)) < bound
        assert not any(without.skipped)


def host_reads(mesh: Mesh, config: Any, precision: str) -> list[tuple[int, int]]:
    """Of an applied and of a skipped step: values the host reads, and those that it reads in DeepSpeed's calls."""
    rows = micro_batches(BATCHES[0], layout=mesh.layout, rank=mesh.rank, accumulation=2)
    poison = replace(POISON, steps={1: math.nan}, rank=0)
    counts = []
    with closing(AutoTPEngine(replace(ADAMW, precision=precision), config=config, weights=None, mesh=mesh)) as one:
        one.train_step(rows)
        for step in (0, 1):
            with pytest.MonkeyPatch.context() as patch, spoilt(one, poison, step), HostReads() as all_reads:
                own = HostReads()
                for name in ("forward", "backward", "step"):
                    patch.setattr(one.zero, name, own.within(getattr(one.zero, name)))
                one.train_step(rows)
            counts.append((all_reads.count, own.count))
    return counts


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_host_reads_only_what_deepspeed_reads(precision: str) -> None:
    """Shows a read of ours. DeepSpeed's step reads the norm on the host, skipped or not, so knowing costs nothing."""
    config = tiny_model("qwen3", dtype=torch.float32).config
    for applied, skipped in run_on_mesh(host_reads, config, precision, dp=2, tp=2):
        assert 0 < applied[1] == applied[0]
        assert skipped[1] == skipped[0] <= applied[0]
