"""Where a worker runs: as a plain process, and on Ray, where a whole run is tested in launch/test_ray."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train
from pyarrow.fs import FileSystem, LocalFileSystem, _MockFileSystem
from tp2d_train.config import TrainConfig
from tp2d_train.runs.folder import RunFolder
from tp2d_train.training.host import PlainHost, RayHost, check_alone, find_host, own_rank, own_world_size, under_ray


def test_a_plain_process_is_not_under_ray_even_with_ray_imported() -> None:
    assert "ray.train" in sys.modules and not under_ray()
    assert isinstance(find_host(), PlainHost)


def test_a_local_worker_imports_no_ray() -> None:
    code = (
        "import sys, tp2d_train.training.worker\n"
        "from tp2d_train.training.host import PlainHost, find_host\n"
        "print(isinstance(find_host(), PlainHost), 'ray' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


def test_rank_and_world_come_from_the_launchers_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (own_rank(), own_world_size()) == (0, 1)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert (own_rank(), own_world_size()) == (3, 8)


def test_the_folder_is_the_configurations() -> None:
    assert PlainHost().folder(TrainConfig(name="a", storage_path="/runs")) == RunFolder(Path("/runs/a"))


def test_a_run_without_a_name_has_no_folder() -> None:
    with pytest.raises(ValueError, match=r"a run that is not started by the command line needs a name: give name"):
        PlainHost().folder(TrainConfig(storage_path="/runs"))


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({}, "tp_size 2, no name"),
        ({"name": "a"}, "tp_size 2"),
        ({"name": "a", "tp_size": 1, "num_workers": "4"}, "num_workers 4"),
        ({"tp_size": "1", "dp_size": 2}, "dp_size 2, no name"),
    ],
)
def test_a_lone_train_func_says_what_it_needs(settings: dict[str, Any], found: str) -> None:
    with pytest.raises(ValueError, match="train_func trains as one rank of a run") as error:
        check_alone(settings)
    assert f"({found})" in str(error.value) and "call tp2d_train.train(TrainConfig(...))" in str(error.value)


def test_a_lone_train_func_is_a_run_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    check_alone({"name": "a", "tp_size": 1})
    check_alone({"name": "a", "tp_size": "1", "num_workers": 1, "dp_size": None})
    monkeypatch.setenv("WORLD_SIZE", "4")
    check_alone({})  # torchrun's ranks say the rest


def storage(monkeypatch: pytest.MonkeyPatch, filesystem: FileSystem) -> None:
    """Ray's answer in a worker; only Ray can give a real one, and only for a file system it can reach."""
    found = SimpleNamespace(storage_filesystem=filesystem, experiment_fs_path="/results/own")
    monkeypatch.setattr(ray.train, "get_context", lambda: SimpleNamespace(get_storage=lambda: found))


def test_under_ray_the_folder_is_rays(monkeypatch: pytest.MonkeyPatch) -> None:
    storage(monkeypatch, LocalFileSystem())
    host = find_host()
    assert isinstance(host, RayHost)
    assert host.folder(TrainConfig(name="a", storage_path="/runs")) == RunFolder(Path("/results/own"))


def test_a_storage_that_is_no_folder_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its path, taken for a folder, would be one of this node alone."""
    storage(monkeypatch, _MockFileSystem())
    with pytest.raises(ValueError, match=r"RunConfig's storage_path must be a folder that .* mock"):
        RayHost().folder(TrainConfig(name="a"))
