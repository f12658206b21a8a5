"""What a rank that lives on puts back between calls, so that a function finds it as a new process."""

import gc
import logging
import os
import random
import resource
import signal
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from tp2d_mesh.testing import reuse_ranks, run_on_mesh


@pytest.fixture(autouse=True)
def _live():
    """A block of this test's own, whatever the session has."""
    with reuse_ranks():
        yield


def pid(mesh):
    return os.getpid()


def settings(mesh):
    """Everything that a rank puts back, in a form that can be compared, drawn numbers last."""
    return {
        "environment": dict(os.environ),
        "folder": str(Path.cwd()),
        "path": list(sys.path),
        "argv": list(sys.argv),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "grad": torch.is_grad_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
        "matmul": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
        "filters": [(action, category, line) for action, _, category, _, line in warnings.filters],
        "signal": signal.getsignal(signal.SIGTERM),
        "files": resource.getrlimit(resource.RLIMIT_FSIZE),
        "stdout": sys.stdout is sys.__stdout__,
        "log": (logging.root.level, len(logging.root.handlers), logging.root.manager.disable),
        "gc": gc.isenabled(),
        "torch": torch.rand(3).tolist(),
        "numpy": np.random.rand(3).tolist(),
    }


def change_settings(mesh, folder):
    os.environ["LEFT_BEHIND"] = "yes"
    del os.environ["RANK"]
    os.chdir(folder)
    sys.path.insert(0, folder)
    sys.argv.append("more")
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_grad_enabled(False)
    torch.set_anomaly_enabled(True)
    torch.set_float32_matmul_precision("medium")
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(2)
    warnings.simplefilter("error")
    signal.signal(signal.SIGTERM, lambda *_: None)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    sys.stdout = None
    logging.basicConfig(level=logging.DEBUG)
    logging.disable(logging.CRITICAL)
    gc.disable()
    random.seed(1)
    torch.manual_seed(1)
    np.random.seed(1)


def drawn(mesh):
    return random.random()


def cycle_of_tensors(mesh):
    """A gigabyte that only the garbage collector frees."""
    holder = [torch.ones(1 << 26)]
    holder.append(holder)


def resident(mesh):
    """Bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_a_function_finds_a_live_rank_as_a_new_process(tmp_path):
    new = run_on_mesh(settings, tp=2, fresh=True)
    first = run_on_mesh(settings, tp=2)
    processes = run_on_mesh(pid, tp=2)
    run_on_mesh(change_settings, str(tmp_path), tp=2)
    assert run_on_mesh(settings, tp=2) == first == new
    assert run_on_mesh(pid, tp=2) == processes


def test_pythons_random_numbers_differ_between_calls_as_between_processes():
    assert run_on_mesh(drawn) != run_on_mesh(drawn)


def test_a_call_has_the_callers_surroundings_of_now(tmp_path, monkeypatch):
    before = run_on_mesh(settings)[0]
    monkeypatch.setenv("SHIPPED", "yes")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("/somewhere")
    now = run_on_mesh(settings)[0]
    assert "SHIPPED" not in before["environment"] and now["environment"]["SHIPPED"] == "yes"
    assert now["folder"] == str(tmp_path) and now["path"][0] == "/somewhere"


def test_what_cycles_hold_is_freed():
    before = run_on_mesh(resident)[0]
    for _ in range(3):
        run_on_mesh(cycle_of_tensors)
    assert run_on_mesh(resident)[0] < before + (1 << 27)
