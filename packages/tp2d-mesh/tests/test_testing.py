import functools
import importlib.util
import os
import signal
import subprocess
import sys
import time
import types
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import Replicate, distribute_tensor
from tp2d_mesh.testing import MeshError, _ranks, run_on_mesh, run_script


@dataclass
class Parcel:
    weight: torch.Tensor
    note: str


def where(mesh):
    return mesh.rank, mesh.dp_rank, mesh.tp_rank, str(mesh.layout)


def scale(mesh, parcel, *, by):
    return Parcel(weight=parcel.weight * by + mesh.rank, note=f"{parcel.note} on {mesh.rank}")


def tensors(mesh):
    huge = torch.arange(1_000_000, dtype=torch.float32)
    grown = (torch.ones(2, requires_grad=True) * 2).to(torch.bfloat16)
    return {
        "view": huge[10:12],
        "grown": grown,
        "bool": torch.tensor([True]),
        "parameter": torch.nn.Parameter(huge[:1]),
    }


def dtensor(mesh):
    return distribute_tensor(torch.ones(2), mesh.device_mesh["tp"], [Replicate()])


def surroundings(mesh):
    names = ("SHIPPED", "RANK", "LOCAL_RANK", "WORLD_SIZE", "OMP_NUM_THREADS")
    return [os.environ.get(name) for name in names], torch.get_num_threads()


def fail_on(mesh, rank, how):
    """One rank fails while its peers wait for it in a collective."""
    if mesh.rank == rank:
        how()
    dist.all_reduce(torch.ones(1))


def raise_boom():
    raise ValueError("boom")


def exit_seven():
    os._exit(7)


def kill_itself():
    os.kill(os.getpid(), signal.SIGKILL)


def hang_on(mesh, rank):
    if mesh.rank == rank:
        the_hanging_call()


def the_hanging_call():
    time.sleep(600)


def with_helper(mesh, folder, then):
    """Starts a process of its own, leaves both ids in files, and goes on."""
    helper = subprocess.Popen(["sleep", "600"])
    Path(folder, f"{mesh.rank}").write_text(f"{os.getpid()} {helper.pid}")
    if then is not None and mesh.rank == 0:
        dist.all_reduce(torch.ones(1), group=mesh.dp_group)
        then()
    elif then is not None:
        dist.all_reduce(torch.ones(1), group=mesh.dp_group)
        the_hanging_call()


def alive(pid):
    """Whether a process runs; one that is dead and not yet reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone_within(seconds, pids):
    deadline = time.monotonic() + seconds
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not any(alive(pid) for pid in pids)


def recorded_pids(folder):
    return [int(pid) for file in Path(folder).iterdir() for pid in file.read_text().split()]


@pytest.mark.parametrize(("dp", "tp"), [(1, 1), (2, 2), (4, 1), (1, 4)])
def test_results_come_in_rank_order(dp, tp):
    name = f"{dp}x{tp} (dp x tp)"
    assert run_on_mesh(where, dp=dp, tp=tp) == [(rank, rank // tp, rank % tp, name) for rank in range(dp * tp)]


def test_arguments_and_results_may_be_classes_of_the_test_file():
    parcels = run_on_mesh(scale, Parcel(weight=torch.ones(2), note="sent"), by=3, tp=2)
    assert [parcel.note for parcel in parcels] == ["sent on 0", "sent on 1"]
    assert all(type(parcel) is Parcel for parcel in parcels)
    assert torch.equal(parcels[1].weight, torch.tensor([4.0, 4.0]))


def test_tensors_arrive_as_plain_ones_of_their_own_storage():
    [result] = run_on_mesh(tensors)
    assert torch.equal(result["view"], torch.tensor([10.0, 11.0]))
    assert result["view"].untyped_storage().nbytes() == 8
    assert result["grown"].dtype == torch.bfloat16 and not result["grown"].requires_grad
    assert torch.equal(result["bool"], torch.tensor([True]))
    assert isinstance(result["parameter"], torch.nn.Parameter)


def test_a_dtensor_is_refused_with_the_way_out():
    with pytest.raises(MeshError, match=r"cannot return a DTensor: return \.full_tensor\(\) or \.to_local\(\)"):
        run_on_mesh(dtensor, tp=2)


def test_ranks_have_the_callers_environment_of_now(monkeypatch):
    run_on_mesh(where)  # the fork server runs from here on
    monkeypatch.setenv("SHIPPED", "yes")
    assert run_on_mesh(surroundings, dp=2) == [(["yes", str(r), str(r), "2", "1"], 1) for r in range(2)]


@pytest.fixture
def looks_late(monkeypatch):
    """The parent looks when every rank has had time to complain about the one that failed."""

    def late(*args):
        monkeypatch.setattr(_ranks, "wait", wait)
        time.sleep(0.5)
        return wait(*args)

    monkeypatch.setattr(_ranks, "wait", late)


def test_the_first_error_is_raised_and_not_what_it_caused(looks_late):
    start = time.monotonic()
    with pytest.raises(MeshError) as caught:
        run_on_mesh(fail_on, 2, raise_boom, dp=2, tp=2)
    message = str(caught.value)
    assert message.startswith("rank 2 of the 2x2 (dp x tp) mesh failed:")
    assert message.rstrip().endswith("ValueError: boom")
    assert "in raise_boom" in message and Path(__file__).name in message
    assert "onnection closed" not in message
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(("how", "code"), [(exit_seven, 7), (kill_itself, -9)])
def test_a_rank_that_dies_is_reported_with_its_exit_code(looks_late, how, code):
    """The peers raise about the broken connection; that must not win."""
    start = time.monotonic()
    with pytest.raises(MeshError, match=f"rank 1 of the 1x4 .* died with exit code {code} before it returned"):
        run_on_mesh(fail_on, 1, how, tp=4)
    assert time.monotonic() - start < 20


def test_an_exit_is_a_failure():
    with pytest.raises(MeshError, match=r"SystemExit: 3"):
        run_on_mesh(fail_on, 0, functools.partial(sys.exit, 3))


def test_a_time_out_says_who_hung_and_where():
    with pytest.raises(MeshError) as caught:
        run_on_mesh(hang_on, 1, tp=2, timeout=3)
    message = str(caught.value)
    assert "ranks [1] of the 1x2 (dp x tp) mesh had not finished after 3 s; finished: [0]." in message
    assert "in the_hanging_call" in message


@pytest.mark.parametrize("then", [None, raise_boom, exit_seven])
def test_nothing_of_a_rank_outlives_the_call(tmp_path, then):
    if then is None:
        run_on_mesh(with_helper, str(tmp_path), then, dp=2)
    else:
        with pytest.raises(MeshError, match="rank 0"):
            run_on_mesh(with_helper, str(tmp_path), then, dp=2)
    pids = recorded_pids(tmp_path)
    assert len(pids) == 4
    assert gone_within(2.0, pids)


SCRIPT = """
import os, sys, time
from pathlib import Path
from tp2d_mesh.testing import reuse_ranks, run_on_mesh

def pid(mesh, folder=None):
    if folder is not None:
        Path(folder, f"{mesh.layout.dp}{mesh.rank}").write_text(str(os.getpid()))
    return mesh.rank

def hang(mesh, folder):
    pid(mesh, folder)
    time.sleep(600)

if __name__ == "__main__":
    assert run_on_mesh(pid, tp=2) == [0, 1]
    with reuse_ranks():
        run_on_mesh(pid, sys.argv[1], tp=2)
        run_on_mesh(hang, sys.argv[1], dp=2)
"""


def test_ranks_of_a_script_end_when_it_is_killed(tmp_path):
    """Those that run a function and those that are idle. Also: functions of a script's __main__ run."""
    script, pids = tmp_path / "script.py", tmp_path / "pids"
    script.write_text(SCRIPT)
    pids.mkdir()
    parent = subprocess.Popen([sys.executable, str(script), str(pids)])
    try:
        while len(list(pids.iterdir())) < 4:
            assert parent.poll() is None
            time.sleep(0.05)
        time.sleep(0.2)  # the files are there before their content
    finally:
        parent.kill()
        parent.wait()
    assert gone_within(5.0, recorded_pids(pids))


def test_a_script_of_torchruns_runs_on_every_rank(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        "from tp2d_mesh import Layout, build_mesh\n"
        "mesh = build_mesh(Layout(dp=1, tp=2))\n"
        "print(__name__, mesh.rank, sys.argv[0] == __file__)\n"
        "mesh.close()\n"
    )
    assert run_script(script, tp=2) == ["__main__ 0 True\n", "__main__ 1 True\n"]
    script.write_text("raise ValueError('boom')\n")
    with pytest.raises(MeshError, match=r'rank \d of the 1x2 [\s\S]*script.py", line 1[\s\S]*ValueError: boom'):
        run_script(script, tp=2)


@pytest.mark.parametrize("name", ["odd.package-name.test_it", "colorsys"])
def test_functions_of_a_file_that_no_import_finds(tmp_path, monkeypatch, name):
    """pytest gives test files such names, with empty parents; the second name belongs to another module."""
    file = tmp_path / "some_test.py"
    file.write_text("class Answer:\n    value = 42\n\ndef answer(mesh):\n    return Answer()\n")
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    for parent in ("odd", "odd.package-name"):
        monkeypatch.setitem(sys.modules, parent, types.ModuleType(parent))
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    [result] = run_on_mesh(module.answer)
    assert type(result) is module.Answer and result.value == 42


@pytest.mark.parametrize("function", [lambda mesh: 1, functools.partial(lambda mesh, x: x, x=1)])
def test_a_function_that_others_cannot_find_is_refused(function):
    with pytest.raises(ValueError, match=r"cannot send .*<lambda>.* define it at the top level of a file"):
        run_on_mesh(function)


def test_sizes_are_checked():
    with pytest.raises(ValueError, match="tp=0 is not a size"):
        run_on_mesh(where, tp=0)
