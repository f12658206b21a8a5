"""The files in `examples/` run as they stand, at a small size."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tp2d_mesh import Mesh
from tp2d_mesh.testing import run_on_mesh
from tp2d_train.config import TrainConfig
from tp2d_train.options import read_yaml
from tp2d_train.setup.check import check
from tp2d_train.training.worker import train_func

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples"
Script = Callable[..., str]


def train(mesh: Mesh, settings: dict[str, Any]) -> dict[str, Any]:
    return train_func(settings)


def names(pattern: str) -> list[str]:
    return sorted(path.name for path in EXAMPLES.glob(pattern))


@pytest.mark.parametrize("name", names("*.yaml"))
def test_a_configuration_trains_on_its_own_mesh(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its paths start at the repository's root, where its first lines say to call it."""
    monkeypatch.chdir(ROOT)
    assert f"tp2d train --config examples/{name}" in (EXAMPLES / name).read_text()
    small = {"storage_path": str(tmp_path), "name": "run", "max_steps": 2, "eval_batches": 1, "device": "cpu"}
    run = check(TrainConfig(**read_yaml(EXAMPLES / name) | small), progress=print)
    layout = run.config.layout
    summaries = run_on_mesh(train, run.config.as_dict(), dp=layout.dp, tp=layout.tp, timeout=120)
    assert summaries[0]["finished"] and summaries[0]["step"] == 2 and summaries[0]["eval_loss"] > 0


@pytest.fixture
def run_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Script:
    """Runs a script of the examples in this process, as one rank, and returns what it prints."""

    def run(name: str, *, steps: int) -> str:
        monkeypatch.setattr(sys, "argv", [name, "--folder", str(tmp_path / "run"), "--steps", str(steps)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        said = capsys.readouterr()
        assert said.err == ""
        return said.out

    return run


def test_a_loop_of_ones_own_goes_on_where_it_was(run_script: Script) -> None:
    assert "step 10  loss " in run_script("own_loop.py", steps=10)
    second = run_script("own_loop.py", steps=20)
    assert "step 10  " not in second and "step 20  loss " in second


def test_records_of_ones_own_are_trained_on(run_script: Script) -> None:
    assert "step 10  loss " in run_script("own_source.py", steps=10)


def test_every_script_is_run_here() -> None:
    assert names("*.py") == ["own_loop.py", "own_source.py"]
