"""The local ranks: a wrong sum, a rank that fails, and one that does not end."""

import multiprocessing
import time

import pytest
import torch
from tp2d_train.doctor import ranks
from tp2d_train.doctor.finding import Level

CPU = torch.device("cpu")


def test_a_wrong_sum_is_a_problem() -> None:
    found = ranks._sum([("rank-0", 0.0, True), ("rank-1", 1.5, True)], device=CPU, seconds=1.0)
    assert found.level is Level.PROBLEM
    assert found.text.endswith("rank-1 is off by 1.5")


def test_a_rank_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line has the rank's own words. It has no such backend where it is told to take one."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "no-such-interface")
    (found,) = ranks.check_ranks(1, device=CPU, folder=None)
    assert found.level is Level.PROBLEM
    assert "no-such-interface" in found.text


def test_ranks_that_do_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shows a check that waits for ever, or leaves its processes behind."""
    monkeypatch.setattr(ranks, "SECONDS", 0.5)  # less than a rank needs to start
    start, before = time.monotonic(), set(multiprocessing.active_children())
    (found,) = ranks.check_ranks(1, device=CPU, folder=None)
    assert time.monotonic() - start < 20
    assert found.level is Level.PROBLEM
    assert found.text.endswith("not done after 0 s")
    assert set(multiprocessing.active_children()) <= before
