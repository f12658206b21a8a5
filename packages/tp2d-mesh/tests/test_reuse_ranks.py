"""Ranks that live on between calls: who shares them, and when they end."""

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tp2d_mesh.testing import MeshError, reuse_ranks, run_on_mesh


@pytest.fixture(autouse=True)
def _live():
    """A block of this test's own, whatever the session has."""
    with reuse_ranks():
        yield


def pid(mesh):
    return os.getpid()


def raise_on(mesh, rank):
    if mesh.rank == rank:
        raise ValueError("boom")


def die_on(mesh, rank):
    if mesh.rank == rank:
        os._exit(7)


def hang_on(mesh, rank):
    if mesh.rank == rank:
        time.sleep(600)


def leave(mesh, what, folder):
    """Rank 0 leaves something behind; its id is in a file."""
    if mesh.rank == 0:
        LEAVINGS[what](Path(folder, "pid"))


def a_process(file):
    file.write_text(str(subprocess.Popen(["sleep", "600"]).pid))


def an_orphan(file):
    """Its parent, a shell, is gone at once."""
    subprocess.run(f"sleep 600 >/dev/null 2>&1 & echo $! > {file}", shell=True, check=True)


def a_thread(file):
    threading.Thread(target=time.sleep, args=(600,)).start()


def a_stray_collective(file):
    """No other rank joins it."""
    dist.all_reduce(torch.ones(1), async_op=True)


def closed_groups(file):
    dist.destroy_process_group()


LEAVINGS = {
    "a process": a_process,
    "an orphan": an_orphan,
    "a thread": a_thread,
    "a stray collective": a_stray_collective,
    "closed groups": closed_groups,
}


def leave_a_daemon(mesh):
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()


def cpu_seconds(mesh):
    times = os.times()
    return times.user + times.system


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


def test_calls_of_one_layout_share_processes_and_layouts_do_not():
    wide, tall = run_on_mesh(pid, tp=2), run_on_mesh(pid, dp=2)
    assert run_on_mesh(pid, tp=2) == wide and run_on_mesh(pid, dp=2) == tall
    assert len({*wide, *tall}) == 4


def test_a_call_may_ask_for_new_processes():
    kept = run_on_mesh(pid, tp=2)
    new = run_on_mesh(pid, tp=2, fresh=True)
    assert not set(new) & set(kept)
    assert not any(alive(p) for p in new)
    assert run_on_mesh(pid, tp=2) == kept


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (raise_on, r"rank 1 of the 1x2 \(dp x tp\) mesh failed:[\s\S]*ValueError: boom"),
        (die_on, r"rank 1 of the 1x2 \(dp x tp\) mesh died with exit code 7"),
        (hang_on, r"ranks \[1\] of the 1x2 \(dp x tp\) mesh had not finished after 2 s; finished: \[0\]"),
    ],
)
def test_a_failure_ends_the_mesh_and_the_next_call_has_another(function, message):
    old = run_on_mesh(pid, tp=2)
    with pytest.raises(MeshError, match=message):
        run_on_mesh(function, 1, tp=2, timeout=2)
    assert not any(alive(p) for p in old)
    assert not set(run_on_mesh(pid, tp=2)) & set(old)


def test_a_rank_that_died_while_idle_is_noticed():
    old = run_on_mesh(pid, tp=2)
    os.kill(old[1], signal.SIGKILL)
    assert gone_within(5.0, [old[1]])
    time.sleep(0.2)  # its threads hold the pipe for a moment longer
    assert not set(run_on_mesh(pid, tp=2)) & set(old)
    assert not alive(old[0])


@pytest.mark.parametrize("what", LEAVINGS)
def test_a_call_that_leaves_something_behind_is_its_meshs_last(what, tmp_path, monkeypatch):
    monkeypatch.setattr("tp2d_mesh.testing._ranks._TIDY", 2.0)
    old = run_on_mesh(pid, tp=2)
    run_on_mesh(leave, what, str(tmp_path), tp=2)
    left = [int(file.read_text()) for file in tmp_path.iterdir()]
    assert gone_within(2.0, [*old, *left])
    assert len(left) == (what in ("a process", "an orphan"))
    assert not set(run_on_mesh(pid, tp=2)) & set(old)


def test_a_daemon_thread_is_no_reason():
    kept = run_on_mesh(pid)
    run_on_mesh(leave_a_daemon)
    assert run_on_mesh(pid) == kept


def test_idle_ranks_use_no_cpu():
    before = run_on_mesh(cpu_seconds, tp=2)
    time.sleep(1.0)
    after = run_on_mesh(cpu_seconds, tp=2)
    assert max(b - a for a, b in zip(before, after, strict=True)) < 0.1


def test_the_layouts_used_last_stay(tmp_path):
    with reuse_ranks(layouts=2):
        one, two = run_on_mesh(pid), run_on_mesh(pid, tp=2)
        assert run_on_mesh(pid) == one
        run_on_mesh(pid, dp=2)
        assert gone_within(2.0, two) and all(map(alive, one))
        assert run_on_mesh(pid) == one


def test_nothing_outlives_the_block():
    with reuse_ranks():
        ranks = run_on_mesh(pid, dp=2) + run_on_mesh(pid)
        assert all(map(alive, ranks))
    assert not any(map(alive, ranks))


def test_another_thread_has_no_part_in_it():
    """Its call would come between those of this one."""
    kept, found = run_on_mesh(pid), []
    thread = threading.Thread(target=lambda: found.extend(run_on_mesh(pid)))
    thread.start()
    thread.join()
    assert found and found != kept
