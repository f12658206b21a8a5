"""Parity on this device in float64: the engine on 1x1 and 1x2 against one plain process on the CPU.

Both ranks of 1x2 are on the one device, which NCCL refuses; gloo carries tensors of a GPU for the collectives that
tensor parallelism needs. Where torch cannot, the row says why.
"""

import pickle
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from tp2d_fsdp2.testing import run_engine
from tp2d_mesh import EngineSpec, Layout, Mesh, NamedTensor
from tp2d_mesh.devices import activate
from tp2d_mesh.mesh import AXES
from tp2d_mesh.testing.packed_parity import documents_reference, packed_batch
from tp2d_mesh.testing.parity import (
    Batch,
    EngineRun,
    Reference,
    random_batches,
    reference_run,
    tiny_model,
    worst_differences,
)

from gpu.runs import starter

BOUND = 1e-10  # rounding in float64 is 1e-16 of an element, and sums have some hundreds
MESHES = (Layout(dp=1, tp=1), Layout(dp=1, tp=2))
_RATE = 0.1
_SECONDS = 300.0


@dataclass(frozen=True, kw_only=True)
class _Case:
    """A tiny saved model, its rows, and what one plain process makes of them."""

    kind: str
    config: Any
    folder: Path
    batches: list[Batch]
    reference: Reference


@dataclass(frozen=True, kw_only=True)
class ParityRow:
    """One kind of rows on one mesh: the worst relative gradient and weight of any parameter on any rank.

    Args:
        kind: of rows, `padded` or `packed`.
        mesh: its sizes.
        gradient: the worst one, or what went wrong.
        weight: the worst one after a step of SGD.
        good: whether both are below `BOUND`.
    """

    kind: str
    mesh: str
    gradient: str
    weight: str
    good: bool


def parity_rows(device: str) -> list[ParityRow]:
    """A row per kind of rows and mesh.

    Args:
        device: `cuda` or `cpu`.
    """
    with tempfile.TemporaryDirectory() as name:
        cases = [_case(kind, Path(name) / kind) for kind in ("padded", "packed")]
        found = []
        for layout in MESHES:
            runs = _runs(layout, device, cases)
            for number, case in enumerate(cases):
                own = runs if isinstance(runs, str) else [rank[number] for rank in runs]
                found.append(_judged(own, case, layout))
    return found


def _case(kind: str, folder: Path) -> _Case:
    model = tiny_model("llama", dtype=torch.float64)
    model.save_pretrained(folder)
    optimizer = torch.optim.SGD(model.parameters(), lr=_RATE)
    if kind == "packed":
        batches = [packed_batch(vocab_size=model.config.vocab_size)]
        reference = documents_reference(model, batches, optimizer=optimizer)
    else:
        batches = random_batches(steps=1, rows=4, seq_length=16, vocab_size=model.config.vocab_size)
        reference = reference_run(model, batches, optimizer=optimizer)
    return _Case(kind=kind, config=model.config, folder=folder, batches=batches, reference=reference)


def _judged(runs: list[EngineRun] | str, case: _Case, layout: Layout) -> ParityRow:
    if isinstance(runs, str):
        return ParityRow(kind=case.kind, mesh=str(layout), gradient=runs, weight="", good=False)
    expected = (("grad.", case.reference.gradients), ("model.", case.reference.weights))
    gradient, weight = (
        max(max(worst_differences(one, run.gradients | run.weights, prefix=prefix).values()) for run in runs)
        for prefix, one in expected
    )
    return ParityRow(
        kind=case.kind,
        mesh=str(layout),
        gradient=f"{gradient:.1e}",
        weight=f"{weight:.1e}",
        good=max(gradient, weight) < BOUND,
    )


def _runs(layout: Layout, device: str, cases: Sequence[_Case]) -> list[list[EngineRun]] | str:
    """Every rank's numbers of every case, or why there are none."""
    context = starter(gpu=device == "cuda")
    with tempfile.TemporaryDirectory() as name:
        meeting = Path(name)
        work = (meeting, layout, device, cases)
        ranks = [context.Process(target=_rank, args=(rank, *work)) for rank in range(layout.world_size)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join(_SECONDS)
            process.kill()
            process.join()
        files = [_answer(meeting, rank) for rank in range(layout.world_size)]
        found: list[Any] = [pickle.loads(file.read_bytes()) if file.exists() else "a rank died" for file in files]
    return next((answer for answer in found if isinstance(answer, str)), found)


def _answer(meeting: Path, rank: int) -> Path:
    return meeting / f"rank-{rank}.pickle"


def _rank(rank: int, meeting: Path, layout: Layout, device: str, cases: Sequence[_Case]) -> None:
    """One rank: leaves its numbers, or what went wrong, in a file."""
    torch.set_num_threads(1)
    try:
        mesh = _gloo_mesh(layout, rank=rank, device=device, meeting=meeting)
        answer: Any = [_run(mesh, case) for case in cases]
        mesh.close()
    except Exception as error:  # the table says what it was
        traceback.print_exc()
        answer = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    _answer(meeting, rank).write_bytes(pickle.dumps(answer))


def _run(mesh: Mesh, case: _Case) -> EngineRun:
    spec = EngineSpec(precision="fp64", optimizer="sgd", learning_rate=_RATE, max_grad_norm=None)
    run = run_engine(mesh, spec, case.config, case.folder, case.batches, accumulation=1)
    return replace(run, gradients=_on_cpu(run.gradients), weights=_on_cpu(run.weights))


def _gloo_mesh(layout: Layout, *, rank: int, device: str, meeting: Path) -> Mesh:
    """A mesh whose ranks share one device; `build_mesh` would take NCCL for a GPU."""
    where = torch.device("cuda", 0) if device == "cuda" else torch.device("cpu")
    activate(where)
    timeout = timedelta(seconds=_SECONDS)
    store = dist.FileStore(str(meeting / "store"), layout.world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=layout.world_size, timeout=timeout)
    groups = [
        dist.new_subgroups_by_enumeration([list(ranks) for ranks in axis], timeout=timeout, backend="gloo")[0]
        for axis in (layout.dp_groups(), layout.tp_groups())
    ]
    device_mesh = DeviceMesh.from_group(groups, where.type, mesh=layout.tp_groups(), mesh_dim_names=AXES)
    return Mesh(layout=layout, device_mesh=device_mesh, device=where, rank=rank, owns_world=True)


def _on_cpu(tensors: Mapping[str, NamedTensor]) -> dict[str, NamedTensor]:
    return {
        name: replace(one, pieces=tuple(replace(p, tensor=p.tensor.detach().cpu()) for p in one.pieces))
        for name, one in tensors.items()
    }
