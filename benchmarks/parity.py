"""Parity of the FSDP2 engine with one process, over every mesh, family and accumulation count, as a table.

    python benchmarks/parity.py            # the matrix: 6 meshes x 4 families x accumulation 1, 2, 4
    python benchmarks/parity.py --sweep    # a verdict for every causal language model type, or for those named
    python benchmarks/parity.py --compile --activation-checkpointing selective    # either of them with these options

For each row: the worst max|difference| / max|gradient| of any parameter on any rank and the worst weight after one SGD
step, both in float64 (Gemma computes its norms in float32 whatever it is given), and the worst difference of 20 AdamW
losses in fp32, against a plain transformers loop in one process. Exits with 1 if a row is outside its bound.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tp2d_fsdp2.testing import run_engine
from tp2d_mesh import RECOMPUTATION, EngineSpec
from tp2d_mesh.testing import MeshError, reuse_ranks, run_on_mesh
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

MESHES = ((1, 1), (2, 1), (1, 2), (2, 2), (4, 1), (1, 4))
FAMILIES = ("qwen2", "llama", "qwen3", "gemma3_text")
SWEEP_MESHES = ((1, 2), (2, 2), (1, 4))
ACCUMULATION = (1, 2, 4)
TINY_LIMIT = 5_000_000  # parameters
ROWS = 16  # divides by dp x accumulation for all of the above


@dataclass(frozen=True, kw_only=True)
class Case:
    """One family with its reference numbers; made once, used on every mesh."""

    config: Any
    folder: Path
    batches: list[Batch]
    reference: Reference
    spec: EngineSpec

    def run(self, *, dp: int, tp: int, accumulation: int) -> list[EngineRun]:
        """The same training on a mesh; every rank's numbers."""
        return run_on_mesh(
            run_engine, self.spec, self.config, self.folder, self.batches, accumulation=accumulation, dp=dp, tp=tp
        )


def case(family: str, folder: Path, *, dtype: torch.dtype, steps: int, spec: EngineSpec) -> Case:
    """Save a tiny model of the family and train it in this process."""
    with torch.device("meta"):
        size = sum(p.numel() for p in tiny_model(family, dtype=dtype).parameters())
    if size > TINY_LIMIT:
        raise ValueError(f"{size:,} parameters at the tiny sizes, which this family's configuration does not all read")
    model = tiny_model(family, dtype=dtype)
    model.save_pretrained(folder)
    batches = random_batches(steps=steps, rows=ROWS, seq_length=16, vocab_size=TINY["vocab_size"])
    if dtype == torch.float64:
        spec = replace(spec, precision="fp64", optimizer="sgd", learning_rate=0.1, max_grad_norm=None)
        reference = reference_run(model, batches, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    else:
        spec = replace(spec, learning_rate=1e-3, weight_decay=0.01, max_grad_norm=1.0)
        adamw = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
        reference = reference_run(model, batches, optimizer=adamw, max_grad_norm=1.0)
    return Case(config=model.config, folder=folder, batches=batches, reference=reference, spec=spec)


def gradient_and_weight_error(c: Case, *, dp: int, tp: int, accumulation: int) -> tuple[float, float]:
    """The worst relative gradient and weight error of any parameter on any rank after one step."""
    runs = c.run(dp=dp, tp=tp, accumulation=accumulation)
    gradients = [worst_differences(c.reference.gradients, run.gradients, prefix="grad.") for run in runs]
    weights = [worst_differences(c.reference.weights, run.weights, prefix="model.") for run in runs]
    return max(max(g.values()) for g in gradients), max(max(w.values()) for w in weights)


def loss_error(c: Case, *, dp: int, tp: int, accumulation: int) -> float:
    """The worst difference of any loss on any rank."""
    runs = c.run(dp=dp, tp=tp, accumulation=accumulation)
    pairs = [pair for run in runs for pair in zip(run.losses, c.reference.losses, strict=True)]
    return max(abs(found - expected) for found, expected in pairs)


def bound(family: str) -> float:
    """Of float64 gradients and weights: 1e-10, and 1e-6 where norms compute in float32 whatever they are given."""
    return 1e-6 if family.startswith("gemma") else 1e-10


def matrix(spec: EngineSpec) -> Iterator[bool]:
    """Print a row per family, mesh and accumulation count; yield whether it is within bounds."""
    print("| family | mesh (dp x tp) | accumulation | gradient, float64 | weight, float64 | 20 losses, fp32 |")
    print("|---|---|---|---|---|---|")
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b:
            wide = case(family, Path(a), dtype=torch.float64, steps=1, spec=spec)
            single = case(family, Path(b), dtype=torch.float32, steps=20, spec=spec)
            for dp, tp in MESHES:
                for accumulation in ACCUMULATION:
                    where = {"dp": dp, "tp": tp, "accumulation": accumulation}
                    gradient, weight = gradient_and_weight_error(wide, **where)
                    loss = loss_error(single, **where)
                    good = max(gradient, weight) < bound(family) and loss < 1e-5
                    mark = "" if good else " **outside**"
                    row = (
                        f"| {family} | {dp}x{tp} | {accumulation} | {gradient:.1e} | {weight:.1e} | {loss:.1e}{mark} |"
                    )
                    print(row, flush=True)
                    yield good


def sweep(families: Sequence[str], spec: EngineSpec) -> Iterator[bool]:
    """Print a verdict per model type; without names, for all that transformers maps to a causal language model."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    print("| model type | verdict |\n|---|---|")
    for family in families or sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        with tempfile.TemporaryDirectory() as folder:
            print(f"| {family} | {verdict(family, Path(folder), spec)} |", flush=True)
            yield True


def verdict(family: str, folder: Path, spec: EngineSpec) -> str:
    """`exact` with the worst error, `wrong` with it, or why the family does not run."""
    try:
        c = case(family, folder, dtype=torch.float64, steps=1, spec=spec)
    except Exception as error:  # one verdict of many: whatever keeps a tiny model of the family from being built
        return f"no tiny model: {first_line(error)}"
    try:
        errors = [gradient_and_weight_error(c, dp=dp, tp=tp, accumulation=2) for dp, tp in SWEEP_MESHES]
    except MeshError as error:
        return f"refused: {last_line(error)}"
    except ValueError as error:
        return f"refused: {first_line(error)}"
    worst = max(max(pair) for pair in errors)
    return f"{'exact' if worst < 1e-6 else '**wrong**'} {worst:.1e}"


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:160]


def last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1][:220]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", nargs="*", metavar="TYPE", help="a verdict per model type; without names, for all")
    parser.add_argument("--compile", action="store_true", help="compile layers with aot_eager, which keeps the kernels")
    parser.add_argument("--activation-checkpointing", choices=RECOMPUTATION, default="none")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    chosen = EngineSpec(
        activation_checkpointing=arguments.activation_checkpointing,
        compile=arguments.compile,
        compile_backend="aot_eager",
        verified_only=False,
    )
    with reuse_ranks():
        results = list(matrix(chosen) if arguments.sweep is None else sweep(arguments.sweep, chosen))
    sys.exit(0 if all(results) else 1)
