"""Outside Ray; a worker on Ray is tested in test_worker_ray."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray.train
from pyarrow.fs import FileSystem, LocalFileSystem, _MockFileSystem
from tp2d_train.config import TrainConfig
from tp2d_train.surroundings import own_rank, own_world_size, run_folder, under_ray


def test_a_plain_process_is_not_under_ray_even_with_ray_imported() -> None:
    assert "ray.train" in sys.modules and not under_ray()


def test_a_local_worker_imports_no_ray() -> None:
    code = "import sys, tp2d_train.worker, tp2d_train.surroundings as s; print(s.under_ray(), 'ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_rank_and_world_come_from_the_launchers_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (own_rank(), own_world_size()) == (0, 1)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert (own_rank(), own_world_size()) == (3, 8)


def test_the_folder_is_the_configurations() -> None:
    assert run_folder(TrainConfig(name="a", storage_path="/runs")) == Path("/runs/a")


def storage(monkeypatch: pytest.MonkeyPatch, filesystem: FileSystem) -> None:
    """Ray's answer in a worker; only Ray can give a real one, and only for a file system it can reach."""
    found = SimpleNamespace(storage_filesystem=filesystem, experiment_fs_path="/results/own")
    monkeypatch.setattr(ray.train, "get_context", lambda: SimpleNamespace(get_storage=lambda: found))


def test_under_ray_the_folder_is_rays(monkeypatch: pytest.MonkeyPatch) -> None:
    storage(monkeypatch, LocalFileSystem())
    assert run_folder(TrainConfig(name="a", storage_path="/runs")) == Path("/results/own")


def test_a_storage_that_is_no_folder_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its path, taken for a folder, would be one of this node alone."""
    storage(monkeypatch, _MockFileSystem())
    with pytest.raises(ValueError, match=r"RunConfig's storage_path must be a folder that .* mock"):
        run_folder(TrainConfig(name="a"))
