"""The most memory of a step with each kind of recomputation, and the arithmetic that it repeats.

    python benchmarks/step_memory.py          # a minute

One rank of the FSDP2 engine takes three steps on the CPU over a fake process group: the first makes the moments, memory
is counted in the second, FLOP and collectives in the third. Memory is every tensor that an operator makes, for as long
as it lives; weights, moments and the batch exist before. FLOP are those of matrix products and attention, as torch
counts them.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch
from common import RESULTS, table, versions, write_result
from torch.utils.flop_counter import FlopCounterMode
from tp2d_fsdp2 import FSDP2Engine
from tp2d_mesh import RECOMPUTATION, EngineSpec
from tp2d_mesh.cost.peak import peak_bytes
from tp2d_mesh.testing.counted import counted, fake_mesh
from tp2d_mesh.testing.parity import random_batches
from transformers import LlamaConfig

LAYERS, HIDDEN, VOCABULARY, SEQ = 8, 1024, 32_000, 2048
MIB = 2**20
Found = tuple[int, int, int]


def config() -> LlamaConfig:
    """A small Llama: heads of 64, a quarter as many for keys and values."""
    return LlamaConfig(
        hidden_size=HIDDEN,
        intermediate_size=2816,
        num_hidden_layers=LAYERS,
        num_attention_heads=16,
        num_key_value_heads=4,
        vocab_size=VOCABULARY,
        max_position_embeddings=SEQ,
        tie_word_embeddings=False,
    )


def measured(mode: str, *, tp: int, precision: str) -> Found:
    """Peak bytes of a step, its FLOP, and its all-reduces over tp."""
    spec = EngineSpec(precision=precision, activation_checkpointing=mode, compile=False)
    batches = random_batches(steps=1, rows=1, seq_length=SEQ, vocab_size=VOCABULARY)
    with fake_mesh(tp=tp) as mesh:
        engine = FSDP2Engine(spec, config=config(), weights=None, mesh=mesh)
        engine.train_step(batches)  # moments exist from here on
        with peak_bytes() as peak:
            engine.train_step(batches)
        with FlopCounterMode(display=False) as flops, counted(mesh) as seen:
            engine.train_step(batches)
        engine.close()
    return peak.bytes, flops.get_total_flops(), seen.calls("all_reduce", axis="tp")


def rows() -> Iterator[tuple[object, ...]]:
    """A line for each tp size, precision and kind of recomputation."""
    for tp, precision in ((1, "fp32"), (2, "fp32"), (2, "bf16")):
        found = {mode: measured(mode, tp=tp, precision=precision) for mode in RECOMPUTATION}
        most, least, _ = found["none"]
        for mode, (peak, flops, sums) in found.items():
            shares = (f"{peak / most:.2f}", f"{flops / least:.3f}")
            yield tp, precision, mode, f"{peak / MIB:,.0f}", *shares, sums


def page() -> Iterator[str]:
    named = ", ".join(f"{name} {number}" for name, number in versions("torch", "transformers").items())
    yield from (
        "# The most memory of a step, by recomputation",
        "",
        f"`python benchmarks/step_memory.py`, {named}. A Llama of {LAYERS} layers, hidden size {HIDDEN:,}, vocabulary "
        f"{VOCABULARY:,}; one row of {SEQ:,} tokens, dp 1, one rank. Beside weights, moments and the batch.",
        "",
    )
    head = "tp | precision | recomputation | peak MiB | of that of none | FLOP, of those of none | all-reduces over tp"
    yield from table(head, rows())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS / "step_memory.md")
    torch.set_num_threads(1)
    write_result(parser.parse_args().output, page())
