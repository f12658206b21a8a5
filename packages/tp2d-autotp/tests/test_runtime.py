"""DeepSpeed in one process: groups that are the mesh's own, another mesh afterwards, nothing compiled, nothing said."""

import os
import sys
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tp2d_autotp import AutoTPEngine, AutoTPSpec, runtime
from tp2d_mesh import Layout, Mesh, build_mesh
from tp2d_mesh.testing import run_on_mesh
from tp2d_mesh.testing.parity import TINY, micro_batches, random_batches, tiny_model

BATCH = random_batches(steps=1, rows=8, seq_length=16, vocab_size=TINY["vocab_size"])[0]


def config() -> Any:
    return tiny_model("qwen3", dtype=torch.float32).config


def step(mesh: Mesh, settings: Any) -> tuple[float, float]:
    engine = AutoTPEngine(AutoTPSpec(), config=settings, weights=None, mesh=mesh)
    stats = engine.train_step(micro_batches(BATCH, layout=mesh.layout, rank=mesh.rank, accumulation=1))
    engine.close()
    return float(stats.loss), float(stats.grad_norm)


def one_after_the_other(mesh: Mesh, settings: Any) -> list[tuple[float, float]]:
    """The mesh given, then others over the same ranks."""
    found = [step(mesh, settings)]
    for layout in (Layout(dp=4, tp=1), Layout(dp=1, tp=4), Layout(dp=2, tp=2)):
        other = build_mesh(layout, device=torch.device("cpu"), timeout=timedelta(seconds=30))
        found.append(step(other, settings))
        other.close()
    return found


def test_engines_on_other_meshes_follow_each_other_in_one_process() -> None:
    """Shows DeepSpeed's groups of the first mesh living on: the second would split by the wrong tp, silently."""
    for numbers in run_on_mesh(one_after_the_other, config(), dp=2, tp=2):
        for found in numbers[1:]:
            assert found == pytest.approx(numbers[0], rel=1e-6)


def own_groups(mesh: Mesh, settings: Any) -> tuple[int, int, bool]:
    """How many groups there are before and with an engine, and whether DeepSpeed's are the mesh's."""
    from torch.distributed.distributed_c10d import _world

    before = len(_world.pg_map)
    engine = AutoTPEngine(AutoTPSpec(), config=settings, weights=None, mesh=mesh)
    same = engine.zero.optimizer.dp_process_group is mesh.dp_group
    if mesh.layout.tp > 1:
        same = same and engine.model.lm_head.mp_group is mesh.tp_group
        same = same and engine.zero.optimizer.model_parallel_group is mesh.tp_group
    after = len(_world.pg_map)
    engine.close()
    return before, after, same


@pytest.mark.parametrize(("dp", "tp"), [(2, 2), (2, 1)])
def test_no_group_exists_twice(dp: int, tp: int) -> None:
    for before, after, same in run_on_mesh(own_groups, config(), dp=dp, tp=tp):
        assert after == before and same


def second_engine(mesh: Mesh, settings: Any) -> str:
    first = AutoTPEngine(AutoTPSpec(), config=settings, weights=None, mesh=mesh)
    with pytest.raises(ValueError) as refusal:
        AutoTPEngine(AutoTPSpec(), config=settings, weights=None, mesh=mesh)
    first.close()
    return str(refusal.value)


def test_a_second_engine_beside_the_first_is_refused() -> None:
    (message,) = run_on_mesh(second_engine, config())
    assert (
        message.startswith("another DeepSpeed engine is open in this process") and "close() that one first" in message
    )


def other_device(mesh: Mesh) -> str:
    runtime.load("cpu")
    with pytest.raises(ValueError) as refusal:
        runtime.load("cuda")
    return str(refusal.value)


def test_another_type_of_device_is_refused() -> None:
    (message,) = run_on_mesh(other_device)
    assert message.startswith("DeepSpeed has been imported for 'cpu' in this process and the mesh is on 'cuda'")


def started_programs(mesh: Mesh, settings: Any) -> tuple[list[str], bool, list[str | None]]:
    """Programs run while an engine opens and steps, whether inductor was imported, and the environment's variables."""
    started: list[str] = []
    sys.addaudithook(lambda event, args: started.append(str(args[0])) if event == "subprocess.Popen" else None)
    step(mesh, settings)
    names = ("DS_ACCELERATOR", "TORCHDYNAMO_DISABLE")
    return started, "torch._inductor.compile_fx" in sys.modules, [os.environ.get(name) for name in names]


def test_nothing_is_compiled(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Shows a compiler being looked for or started, torch's own included, and anything printed."""
    for name in ("DS_ACCELERATOR", "TORCHDYNAMO_DISABLE"):
        monkeypatch.delenv(name, raising=False)
    for started, inductor, variables in run_on_mesh(started_programs, config(), tp=2, fresh=True):
        assert started == [] and not inductor and variables == [None, None]
    out, err = capfd.readouterr()
    assert out == "" and "deepspeed" not in err.lower() and "deprecated" not in err


def without_a_launcher(mesh: Mesh, settings: Any) -> bool:
    """Ray and others set no LOCAL_RANK; DeepSpeed wants one."""
    del os.environ["LOCAL_RANK"]
    step(mesh, settings)
    return "LOCAL_RANK" in os.environ


def test_no_launchers_variables_are_needed() -> None:
    assert run_on_mesh(without_a_launcher, config()) == [False]


def world_of_its_own(mesh: Mesh, settings: Any) -> list[tuple[float, float]]:
    """The default group destroyed and made anew between two engines."""
    found = [step(mesh, settings)]
    mesh.close()
    dist.destroy_process_group()
    for name in ("RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)
    fresh = build_mesh(Layout(dp=1, tp=1), device=torch.device("cpu"))
    found.append(step(fresh, settings))
    fresh.close()
    return found


def test_an_engine_opens_in_a_new_world() -> None:
    (numbers,) = run_on_mesh(world_of_its_own, config(), fresh=True)
    assert numbers[0] == numbers[1]
