"""Which runs a command line means, and when it means the same as another one."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from tp2d_train.comparison.settings import Settings, meshes_of_world


def cells(**given: Any) -> list[str]:
    return [cell.name for cell in Settings.of(given).cells()]


def sizes(**given: Any) -> list[tuple[int, int, int]]:
    """Rows of a micro-batch, accumulation and rows of a step of each run."""
    configs = [cell.config("runs") for cell in Settings.of({"engines": ("fsdp2",), **given}).cells()]
    return [(one.batch_size_per_gpu, one.gradient_accumulation_steps, one.global_batch_size) for one in configs]


@pytest.mark.parametrize(
    ("given", "meshes"),
    [
        ({}, ["4x1", "2x2", "1x4"]),
        ({"num_workers": 6}, ["6x1", "3x2", "2x3", "1x6"]),
        ({"tp_size": 2, "dp_size": 1}, ["2x1", "1x2"]),
        ({"num_workers": 1}, ["1x1"]),
    ],
)
def test_the_default_is_every_mesh_of_the_world(given: dict[str, int], meshes: list[str]) -> None:
    assert meshes_of_world(given) == meshes


def test_a_run_for_each_mesh_engine_and_recomputation() -> None:
    assert cells(meshes=("1x1", "2x1", "1x1")) == ["fsdp2-1x1", "autotp-1x1", "fsdp2-2x1", "autotp-2x1"]
    modes = ("none", "full")
    assert cells(meshes=("1x2",), engines=("fsdp2",), activation_checkpointing=modes) == [
        "fsdp2-1x2-none",
        "fsdp2-1x2-full",
    ]


def test_accumulation_makes_up_for_dp() -> None:
    meshes = ("1x1", "2x1", "1x2", "4x1")
    assert sizes(meshes=meshes) == [(8, 4, 32), (8, 2, 32), (8, 4, 32), (8, 1, 32)], "the default of built-in models"
    assert sizes(meshes=meshes, global_batch_size=8) == [(2, 4, 8), (2, 2, 8), (2, 4, 8), (2, 1, 8)]
    assert sizes(meshes=("1x1", "2x1"), batch_size_per_gpu=3) == [(3, 2, 6), (3, 1, 6)]


def test_the_global_batch_is_that_of_the_files_run() -> None:
    """A file for `tp2d train` has its own mesh; a mesh that its batch does not fit is refused when it is checked."""
    file = {"dp_size": 2, "tp_size": 2, "batch_size_per_gpu": 2, "gradient_accumulation_steps": 3, "engine": "autotp"}
    settings = Settings.of(file)
    assert settings.run["global_batch_size"] == 12 and settings.engines == ("fsdp2", "autotp")
    four_by_one, *_ = settings.cells()
    with pytest.raises(ValueError, match="global_batch_size 12 is not dp_size 4 x batch_size_per_gpu 2 x"):
        four_by_one.config("runs")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"meshes": ("2",)}, "'2', which is no dp x tp such as 2x1"),
        ({"meshes": ("0x2",)}, "'0x2', which is no dp x tp"),
        ({"engines": ("megatron",)}, "unknown engines 'megatron': choose fsdp2, autotp"),
        ({"activation_checkpointing": ("some",)}, "unknown activation_checkpointing 'some': choose none, selective"),
        ({"seq_length": 0}, "seq_length must be at least 2"),
        ({"global_batch_size": 8, "batch_size_per_gpu": 3}, "global_batch_size 8 is not"),
        ({"tp_size": 3}, "tp_size 3 x dp_size 1 = 3, but num_workers is 4"),
    ],
)
def test_what_no_run_can_have_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings.of(given)


def stored(settings: Settings) -> Settings:
    return Settings.from_json(json.loads(json.dumps(asdict(settings))))


FIRST = {"meshes": ("1x1", "2x1"), "engines": ("fsdp2",), "learning_rate": 1e-4, "dataset_name": ("builtin:stdlib",)}


@pytest.mark.parametrize("again", [{}, FIRST, {"progress": "quiet"}, {"seed": 42}, {"global_batch_size": 16}])
def test_a_comparison_goes_on_by_its_name_or_with_the_same_options(again: dict[str, Any]) -> None:
    old = stored(Settings.of(FIRST))
    assert old.changes(Settings.of(again, stored=old)) == ""


@pytest.mark.parametrize(
    ("again", "changes"),
    [
        ({"seed": 7}, "seed 42 -> 7"),
        ({"max_steps": 3}, "max_steps 20 -> 3"),
        ({"meshes": ("1x1",)}, "meshes 1x1,2x1 -> 1x1"),
        ({"num_workers": 1}, "meshes 1x1,2x1 -> 1x1"),
        ({"engines": ("autotp",)}, "engines fsdp2 -> autotp"),
        ({"activation_checkpointing": ("full",)}, "activation_checkpointing none -> full"),
        ({"learning_rate": 1e-3}, "learning_rate 0.0001 -> 0.001"),
        ({"batch_size_per_gpu": 4}, "batch_size_per_gpu 8 -> 4"),
    ],
)
def test_other_settings_are_named(again: dict[str, Any], changes: str) -> None:
    old = stored(Settings.of(FIRST))
    assert changes in old.changes(Settings.of(again, stored=old))


def test_a_file_is_found_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("some words")
    assert Settings.of({"dataset_name": ("text.txt",)}).run["dataset_name"] == (str(tmp_path / "text.txt"),)
