"""What every test of the repository finds, whoever starts it and from where.

The environment of the shell decides nothing: what steers the libraries is removed before any of them is imported, so
this file imports none at its top. It serves a package that is tested alone too (`pytest packages/tp2d-data`), where the
others may be absent.
"""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

_STEERING = (
    *("HF_", "HUGGINGFACE_", "HUGGING_FACE_", "TRANSFORMERS_", "TOKENIZERS_", "DATASETS_"),
    *("DS_", "DEEPSPEED_", "RAY_", "TP2D_", "SLURM_", "HATCH_ENV_ACTIVE"),
    *("CUDA_VISIBLE_DEVICES", "TORCH_", "TORCHDYNAMO_", "PYTORCH_", "MKL_", "OMP_"),
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_", "TORCHELASTIC_"),
    *("PYTHONWARNINGS", "PYTHONIOENCODING", "PYTHONUTF8", "COLUMNS", "LINES", "XDG_CACHE_HOME"),
)
_WANTED = {
    "OMP_NUM_THREADS": "1",  # two test processes share the machine, and their ranks
    "PYTHONUTF8": "1",  # of the processes that tests start, whatever LANG says
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # a report is answered at a check: 2 s each by default
}


def _set_environment() -> Path | None:
    """Make the environment of all tests; the folder of the session's caches, where this process made it.

    A worker of pytest-xdist has the environment that its controller made.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        return None
    for name in [name for name in os.environ if name.startswith(_STEERING)]:
        del os.environ[name]
    folder = Path(tempfile.mkdtemp(prefix="tp2d-tests-"))
    os.environ.update(_WANTED, HF_HOME=str(folder / "huggingface"), TP2D_CACHE=str(folder / "tp2d"))
    return folder


_CACHES = _set_environment()


def pytest_unconfigure() -> None:
    if _CACHES is not None:
        shutil.rmtree(_CACHES, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def _live_ranks() -> Iterator[None]:
    """`run_on_mesh` starts its ranks once for all tests of this process."""
    if find_spec("tp2d_mesh") is None:
        yield
        return
    from tp2d_mesh.testing import reuse_ranks

    with reuse_ranks(layouts=6):
        yield


@pytest.fixture(scope="module", autouse=True)
def _root_logger() -> Iterator[None]:
    """Each file finds the root logger as it was at the start: Ray makes a process that it joins as quiet as itself."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    root.setLevel(level)
    root.handlers[:] = handlers
