"""What options given over a run's stored configuration mean, and configurations that another version has written."""

import logging
from pathlib import Path
from typing import Any

import pytest
import yaml
from tp2d_train.config import TrainConfig
from tp2d_train.runs.folder import RunFolder
from tp2d_train.runs.run import Run
from tp2d_train.runs.stored import overlaid, read_stored


def store(path: Path, **settings: Any) -> RunFolder:
    """The folder of a run called `a`; the built-in job has 2x2 workers and 2 x 8 rows a step."""
    run = Run(config=TrainConfig(name="a", storage_path=str(path), **settings))
    run.start()
    return run.folder


def sizes(folder: RunFolder, **given: Any) -> tuple[int, int, int, int, int]:
    """tp, dp, workers, rows of a micro-batch and accumulation of the run that `given` means; its global batch stays."""
    before, new = read_stored(folder), TrainConfig(**overlaid(folder, given))
    assert before is not None and new.global_batch_size == before.global_batch_size
    batch = new.batch_size_per_gpu, new.gradient_accumulation_steps
    return (new.tp_size, new.dp_size, new.num_workers, *batch)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (2, 2, 4, 8, 1)),
        ({"tp_size": 4}, (4, 1, 4, 8, 2)),
        ({"tp_size": 1}, (1, 4, 4, 4, 1)),  # 4 x 8 rows are more than the step has
        ({"num_workers": 2}, (2, 1, 2, 8, 2)),
        ({"dp_size": 4}, (2, 4, 8, 4, 1)),
        ({"dp_size": 1}, (2, 1, 2, 8, 2)),
        ({"tp_size": 1, "dp_size": 1}, (1, 1, 1, 8, 2)),
        ({"tp_size": 1, "num_workers": 2}, (1, 2, 2, 8, 1)),
        ({"tp_size": 1, "dp_size": None}, (1, 4, 4, 4, 1)),
        ({"dp_size": "1"}, (2, 1, 2, 8, 2)),  # a launcher may give text
        ({"batch_size_per_gpu": 2}, (2, 2, 4, 2, 4)),
        ({"batch_size": 2}, (2, 2, 4, 2, 4)),
        ({"batch_size_per_gpu": 4, "gradient_accumulation_steps": 2}, (2, 2, 4, 4, 2)),
        ({"batch_size_per_gpu": 16, "dp_size": 1}, (2, 1, 2, 16, 1)),
        ({"num_workers": 1, "tp_size": 1, "dp_size": 1, "global_batch_size": 16}, (1, 1, 1, 8, 2)),
    ],
)
def test_what_follows_from_a_given_size_follows_anew(
    tmp_path: Path, given: dict[str, Any], expected: tuple[int, ...]
) -> None:
    assert sizes(store(tmp_path), **given) == expected


def test_rows_that_fit_no_mesh_of_this_size_are_left_for_the_rules_of_resuming(tmp_path: Path) -> None:
    """They refuse another global batch and name both."""
    assert TrainConfig(**overlaid(store(tmp_path), {"dp_size": 3})).global_batch_size == 24


def test_the_rest_is_the_stored_one_with_the_given_on_top(tmp_path: Path) -> None:
    folder = store(tmp_path, seed=7, num_epochs=3, dataset_percentage=10.0, launcher="local", resume="never")
    new = overlaid(folder, {"num_epochs": 5})
    assert {"seed": 7, "num_epochs": 5, "dataset_percentage": 10.0, "launcher": "local"}.items() <= new.items()
    assert not {"name", "storage_path", "resume"} & new.keys()


def test_a_configuration_of_another_version_resumes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An older one lacks options, which have their defaults then. A newer one has some, which are named."""
    folder = store(tmp_path, seed=7, dataset_percentage=10.0)
    content = yaml.safe_load(folder.config.read_text())
    del content["max_skipped_steps"], content["on_spike"], content["eval_dataset"]
    folder.config.write_text(yaml.safe_dump(content | {"flux_capacity": 3}))
    with caplog.at_level(logging.WARNING):
        settings = overlaid(folder, {})
    assert (settings["seed"], settings["max_skipped_steps"], settings["dataset_percentage"]) == (7, 3, 10.0)
    assert "flux_capacity" not in settings and "left out flux_capacity, which this version does" in caplog.text


@pytest.mark.parametrize("text", ["tp_size: [", "{name: a, storage_path: b, model_name: c, seed: maybe}"])
def test_a_damaged_configuration_is_named(tmp_path: Path, text: str) -> None:
    folder = store(tmp_path)
    folder.config.write_text(text)
    with pytest.raises(ValueError, match=r"run 'a' cannot be resumed, its configuration is damaged"):
        overlaid(folder, {})


def test_nothing_is_stored_where_there_is_no_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a")
    assert read_stored(folder) is None and overlaid(folder, {"seed": 1}) == {"seed": 1}
