"""An error on one rank is the same error on all ranks, and no rank waits for a time-out."""

import time
from pathlib import Path

import pytest
from tp2d_ckpt import CheckpointError
from tp2d_ckpt.collective import agree, on_rank0, together
from tp2d_mesh.testing import run_on_mesh


def results(mesh):
    group = mesh.world_group
    return (
        together("counting", lambda: mesh.rank, group=group),
        agree("counting", lambda: 10 * mesh.rank, group=group),
        on_rank0("counting", lambda: f"from {mesh.rank}", group=group),
    )


def errors(mesh, failing):
    def fn():
        if mesh.rank in failing:
            raise failing[mesh.rank]

    started = time.monotonic()
    try:
        together("saving step 7", fn, group=mesh.world_group)
    except (ValueError, CheckpointError) as error:
        assert time.monotonic() - started < 10
        return type(error).__name__, str(error), "".join(getattr(error, "__notes__", []))
    return None


def error_on_rank0(mesh):
    with pytest.raises(CheckpointError, match="looking failed on rank 0: FileNotFoundError"):
        on_rank0("looking", lambda: Path("/absent").stat(), group=mesh.world_group)


def test_results_come_in_rank_order():
    found = run_on_mesh(results, dp=3, tp=1)
    assert found == [([0, 1, 2], 10 * rank, "from 0") for rank in range(3)]


def test_a_full_disk_on_one_rank_is_one_error_on_all():
    found = run_on_mesh(errors, {1: OSError(28, "No space left on device", "/data/x")}, dp=3, tp=1)
    assert found == [found[0]] * 3
    kind, message, notes = found[0]
    assert (kind, message) == (
        "CheckpointError",
        "saving step 7 failed on rank 1: OSError: [Errno 28] No space left on device: '/data/x'",
    )
    assert "On rank 1" in notes and "raise failing" in notes


def test_a_users_mistake_stays_a_value_error_unless_a_rank_failed_otherwise():
    found = run_on_mesh(errors, {0: ValueError("w is missing"), 2: ValueError("w is missing")}, dp=3, tp=1)
    assert [f[:2] for f in found] == [("ValueError", "w is missing")] * 3
    found = run_on_mesh(errors, {0: ValueError("w"), 1: KeyError("k"), 2: OSError("gone")}, dp=3, tp=1)
    assert found[0][:2] == ("CheckpointError", "saving step 7 failed on rank 1 (and on 2 more): KeyError: 'k'")


def test_an_error_on_rank_0_reaches_the_others():
    run_on_mesh(error_on_rank0, dp=2, tp=1)
