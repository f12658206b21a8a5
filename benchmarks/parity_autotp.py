"""Parity of the DeepSpeed engine with one process, over every mesh, family, ZeRO stage and accumulation, as a table.

    python benchmarks/parity_autotp.py            # the matrix: 6 meshes x 2 stages x 4 families x accumulation 1, 2, 4
    python benchmarks/parity_autotp.py --sweep    # a verdict for each family tp2d-mesh has verified, or those named

For each row: the worst max|difference| / max|gradient| of any parameter on any rank and the worst weight after one SGD
step, both in float64 (DeepSpeed sums and steps in float32 whatever it is given, so the weights start at numbers that
float32 has), the norm's relative error, and the worst difference of 20 AdamW losses in fp32, against a plain
transformers loop in one process. Exits with 1 if a row is outside its bound.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tp2d_autotp import AutoTPSpec
from tp2d_autotp.testing import run_engine
from tp2d_mesh import VERIFIED_FAMILIES
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
STAGES = (1, 2)
FAMILIES = ("qwen2", "llama", "qwen3", "gemma3_text")
ACCUMULATION = (1, 2, 4)
SWEEP_MESHES = ((1, 2), (2, 2), (1, 4))
ROWS = 16  # divides by dp x accumulation for all of the above
GRADIENT, NORM, LOSS = 5e-7, 1e-6, 1e-5  # the bounds


@dataclass(frozen=True, kw_only=True)
class Case:
    """One family with its reference numbers; made once, used on every mesh."""

    config: Any
    folder: Path
    batches: list[Batch]
    reference: Reference
    spec: AutoTPSpec

    def run(self, *, dp: int, tp: int, accumulation: int, zero_stage: int) -> list[EngineRun]:
        """The same training on a mesh; every rank's numbers."""
        spec = replace(self.spec, zero_stage=zero_stage, verified_only=False)
        return run_on_mesh(
            run_engine, spec, self.config, self.folder, self.batches, accumulation=accumulation, dp=dp, tp=tp
        )


def one_step(family: str, folder: Path) -> Case:
    """One SGD step in float64, from weights that float32 can hold."""
    model = tiny_model(family, dtype=torch.float64)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.float())
    spec = AutoTPSpec(precision="fp64", optimizer="sgd", learning_rate=0.1, max_grad_norm=None)
    return _case(model, folder, steps=1, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), spec=spec)


def twenty_steps(family: str, folder: Path) -> Case:
    """20 clipped AdamW steps in fp32."""
    model = tiny_model(family, dtype=torch.float32)
    spec = AutoTPSpec(learning_rate=1e-3, weight_decay=0.01, max_grad_norm=1.0)
    adamw = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    return _case(model, folder, steps=20, optimizer=adamw, spec=spec)


def _case(model: Any, folder: Path, *, steps: int, optimizer: torch.optim.Optimizer, spec: AutoTPSpec) -> Case:
    model.save_pretrained(folder)
    batches = random_batches(steps=steps, rows=ROWS, seq_length=16, vocab_size=TINY["vocab_size"])
    reference = reference_run(model, batches, optimizer=optimizer, max_grad_norm=spec.max_grad_norm)
    return Case(config=model.config, folder=folder, batches=batches, reference=reference, spec=spec)


def step_errors(case: Case, **where: int) -> tuple[float, float, float]:
    """The worst relative error of a gradient, of a weight and of the norm, of any parameter on any rank."""
    runs, expected = case.run(**where), case.reference
    gradients = [worst_differences(expected.gradients, run.gradients, prefix="grad.") for run in runs]
    weights = [worst_differences(expected.weights, run.weights, prefix="model.") for run in runs]
    norm = max(abs(run.norms[0] / expected.norms[0] - 1) for run in runs)
    return max(max(g.values()) for g in gradients), max(max(w.values()) for w in weights), norm


def loss_error(case: Case, **where: int) -> float:
    """The worst difference of any loss on any rank."""
    pairs = [pair for run in case.run(**where) for pair in zip(run.losses, case.reference.losses, strict=True)]
    return max(abs(found - expected) for found, expected in pairs)


def matrix() -> Iterator[bool]:
    """Print a row per family, mesh, stage and accumulation count; yield whether it is within bounds."""
    print("| family | mesh (dp x tp) | ZeRO | accumulation | gradient | weight | norm | 20 losses, fp32 |")
    print("|---|---|---|---|---|---|---|---|")
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as a, tempfile.TemporaryDirectory() as b:
            wide, single = one_step(family, Path(a)), twenty_steps(family, Path(b))
            for dp, tp, stage, accumulation in ((*m, s, n) for m in MESHES for s in STAGES for n in ACCUMULATION):
                where = {"dp": dp, "tp": tp, "accumulation": accumulation, "zero_stage": stage}
                gradient, weight, norm = step_errors(wide, **where)
                loss = loss_error(single, **where)
                good = max(gradient, weight) < GRADIENT and norm < NORM and loss < LOSS
                mark = "" if good else " **outside**"
                numbers = " | ".join(f"{n:.1e}" for n in (gradient, weight, norm, loss))
                print(f"| {family} | {dp}x{tp} | {stage} | {accumulation} | {numbers}{mark} |", flush=True)
                yield good


def sweep(families: Sequence[str]) -> Iterator[bool]:
    """Print a verdict per model type."""
    print("| model type | verdict |\n|---|---|")
    for family in families or sorted(VERIFIED_FAMILIES):
        with tempfile.TemporaryDirectory() as folder:
            print(f"| {family} | {verdict(family, Path(folder))} |", flush=True)
            yield True


def verdict(family: str, folder: Path) -> str:
    """`exact` or `wrong`, with the worst error, or why the family does not run."""
    case = one_step(family, folder)
    try:
        errors = [step_errors(case, dp=dp, tp=tp, accumulation=2, zero_stage=1) for dp, tp in SWEEP_MESHES]
    except MeshError as error:
        return f"refused: {str(error).strip().splitlines()[-1][:220]}"
    worst = max(max(gradient, weight) for gradient, weight, _ in errors)
    return f"{'exact' if worst < GRADIENT else '**wrong**'} {worst:.1e}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", nargs="*", metavar="MODEL_TYPE", help="verdicts instead of the matrix")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with reuse_ranks():
        results = list(matrix() if arguments.sweep is None else sweep(arguments.sweep))
    sys.exit(0 if all(results) else 1)
