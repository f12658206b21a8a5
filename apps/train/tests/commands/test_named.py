"""A run is found by its name."""

import os
from pathlib import Path

import pytest
from tp2d_train.commands.named import RunOptions, find_folder, folders
from tp2d_train.config import TrainConfig
from tp2d_train.runs.run import find_run


def test_a_run_is_a_folder_with_a_configuration(tmp_path: Path) -> None:
    for name in ("first", "second"):
        find_run(TrainConfig(name=name, storage_path=str(tmp_path))).start()
    (tmp_path / "notes").mkdir()
    assert [folder.path.name for folder in folders(str(tmp_path))] == ["first", "second"]
    assert folders(str(tmp_path / "none")) == []
    assert find_folder("second", str(tmp_path)).path == tmp_path / "second"


def test_the_run_that_was_meant_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    find_run(TrainConfig(name="first")).start()
    for slip in ("frist", f"runs{os.sep}first"):
        with pytest.raises(ValueError, match=rf"there is no run '{slip}' in {tmp_path}/runs; did you mean first\?"):
            find_folder(slip, "runs")
    with pytest.raises(ValueError, match="tp2d runs lists all"):
        find_folder("qqqq", "runs")
    with pytest.raises(ValueError, match="tp2d runs --storage-path 'a b' lists all"):
        find_folder("first", "a b")


def test_a_name_is_not_empty() -> None:
    with pytest.raises(ValueError, match="name is empty"):
        RunOptions(name="")
