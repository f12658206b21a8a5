"""The estimate of a step against real ones: states and collectives to the byte, the peak beside them within 10 %.

A small part of `benchmarks/plan_truth.py`.
"""

import time
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tp2d_fsdp2 import FSDP2Engine, estimate
from tp2d_fsdp2.holdings import Holdings, fits_gathered
from tp2d_mesh import EngineSpec, Layout, Mesh, build_skeleton
from tp2d_mesh.cost import Estimate, totals
from tp2d_mesh.cost.peak import peak_bytes
from tp2d_mesh.testing import run_on_mesh
from tp2d_mesh.testing.counted import counted
from tp2d_mesh.testing.parity import random_batches, tiny_model
from transformers import LlamaConfig

ROWS, SEQ, VOCABULARY = 2, 128, 512
SPEC = EngineSpec(gather_once=False, compile=False)
FULL = replace(SPEC, activation_checkpointing="full")
SIZES: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 344,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "head_dim": 16,
    "max_position_embeddings": SEQ,
    "vocab_size": VOCABULARY,
}
GEMMA = {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"], "sliding_window": 32}
CPU = torch.device("cpu")


def config_of(family: str) -> Any:
    more: dict[str, Any] = GEMMA if family == "gemma3_text" else {}
    return tiny_model(family, dtype=torch.float32, **{**SIZES, **more}).config


def estimated(spec: EngineSpec, config: Any, *, dp: int, tp: int, accumulation: int = 1, **more: Any) -> Estimate:
    model = build_skeleton(config, spec=spec, dtype=torch.float32)
    size = {"batch": ROWS, "seq": SEQ, "micro_batches": accumulation}
    return estimate(spec, model=model, layout=Layout(dp=dp, tp=tp), device=CPU, **{**size, **more})


def local(tensor: Any) -> torch.Tensor:
    return getattr(tensor, "_local_tensor", tensor)


def bytes_of(tensors: list[Any]) -> int:
    return sum(local(t).numel() * t.element_size() for t in tensors)


def step(mesh: Mesh, spec: EngineSpec, config: Any, accumulation: int) -> tuple[tuple[int, int, int], int, Any]:
    """Bytes of weights, gradients and optimizer; the peak beside them; collectives."""
    engine = FSDP2Engine(spec, config=config, weights=None, mesh=mesh)
    batches = random_batches(steps=accumulation, rows=ROWS, seq_length=SEQ, vocab_size=VOCABULARY)
    parameters, gradients = list(engine.model.parameters()), []
    engine.optimizer.register_step_pre_hook(lambda *_: gradients.append(bytes_of([p.grad for p in parameters])))
    with peak_bytes(apart=lambda: [local(p.grad) for p in parameters if p.grad is not None]) as peak:
        engine.train_step(batches)
        before = peak.now()
        peak.restart()
        engine.train_step(batches)
    with counted(mesh) as seen:
        engine.train_step(batches)
    optimizer = bytes_of([t for state in engine.optimizer.state.values() for t in state.values()])
    held = (bytes_of(parameters), gradients[-1], optimizer)
    engine.close()
    return held, peak.bytes - before, seen.totals()


@pytest.mark.parametrize(
    ("family", "spec", "dp", "tp", "accumulation"),
    [
        ("llama", SPEC, 2, 1, 1),
        ("qwen2", SPEC, 1, 2, 4),
        ("qwen3", FULL, 2, 2, 1),
        ("gemma3_text", replace(SPEC, activation_checkpointing="selective"), 2, 1, 1),
        ("llama", replace(SPEC, precision="bf16"), 2, 1, 1),
        ("llama", replace(SPEC, gather_once=True), 2, 1, 4),
    ],
)
def test_a_real_step_holds_and_sends_what_was_estimated(
    family: str, spec: EngineSpec, dp: int, tp: int, accumulation: int
) -> None:
    """Shows a state or a collective that is left out, and a unit or an activation that is not counted at the peak."""
    config = config_of(family)
    held, peak, sent = run_on_mesh(step, spec, config, accumulation, dp=dp, tp=tp)[0]
    found = estimated(spec, config, dp=dp, tp=tp, accumulation=accumulation)
    memory = found.memory
    assert (memory.weights, memory.gradients, memory.optimizer) == held
    assert totals(found.traffic) == sent
    assert memory.total - sum(held) == pytest.approx(peak, rel=0.1)


def test_llama_405b_at_tp_8_takes_about_a_second_and_leaves_process_groups_alone() -> None:
    """A bound of 5 s, for a busy machine; a trace of all 126 layers takes far longer."""
    config = LlamaConfig(
        hidden_size=16384,
        intermediate_size=53248,
        num_hidden_layers=126,
        num_attention_heads=128,
        num_key_value_heads=8,
        vocab_size=128_256,
        tie_word_embeddings=False,
    )
    spec = EngineSpec(precision="bf16", activation_checkpointing="full")
    model = build_skeleton(config, spec=spec, dtype=torch.float32)
    start = time.process_time()
    found = estimate(spec, model=model, layout=Layout(dp=64, tp=8), device=torch.device("cuda"), batch=1, seq=8192)
    assert time.process_time() - start < 5
    assert not dist.is_initialized()
    # Of each layer its input and two sums over tp are kept, in bf16.
    assert found.memory.activations > 126 * 3 * 8192 * 16384 * 2


def test_weights_stay_gathered_where_they_and_the_states_take_half_of_the_memory() -> None:
    """Shows a rule that leaves out a part of what is held; without a memory nothing stays."""
    held = Holdings(weights=10, gradients=10, optimizer=20, whole=60, sharded=True)
    assert [fits_gathered(held, memory=memory) for memory in (199, 200)] == [False, True]
    config, spec = config_of("llama"), replace(SPEC, gather_once=None)
    found = [estimated(spec, config, dp=2, tp=1, memory_per_rank=memory) for memory in (None, 2**20, 2**40)]
    assert [one.gather_once for one in found] == [False, False, True]
