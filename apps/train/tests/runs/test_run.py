"""Names, folders, and what it means to start a run under a name that exists."""

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from tp2d_ckpt.commit import create_directory
from tp2d_train.config import TrainConfig
from tp2d_train.options import read_yaml
from tp2d_train.runs.run import find_run, new_name, resumed_settings

from apps.train.tests.named import config, finish, save, saved, started


def test_a_run_without_a_name_gets_a_new_one_each_time(tmp_path: Path) -> None:
    runs = [find_run(config(tmp_path, model_name="org/Some-Model")) for _ in range(2)]
    assert all("-Some-Model-2x2-" in run.path.name and run.path.parent == tmp_path for run in runs)
    assert len({new_name(runs[0].config) for _ in range(20)}) > 15


def test_looking_for_a_run_leaves_nothing(tmp_path: Path) -> None:
    find_run(config(tmp_path, name="a"))
    assert list(tmp_path.iterdir()) == []


def test_the_same_name_resumes(tmp_path: Path) -> None:
    assert find_run(config(tmp_path, name="a")).previous is None
    first = saved(tmp_path, name="a", seed=7)
    again = find_run(config(tmp_path, name="a", seed=7))
    assert again.previous == first.config
    assert not again.finished


def test_a_start_forgets_the_last_request_to_stop(tmp_path: Path) -> None:
    run = started(tmp_path, name="a")
    run.folder.stop.touch()
    run.start()
    assert not run.folder.stop.exists()


def test_the_saved_configuration_is_the_resolved_one(tmp_path: Path) -> None:
    run = started(tmp_path, name="a", num_workers=8)
    assert TrainConfig(**read_yaml(run.folder.config)) == run.config
    assert run.config.dp_size == 4


def test_a_configuration_of_the_version_before_counts_as_unchanged(tmp_path: Path) -> None:
    """It wrote several datasets and their weights as text."""
    settings: dict[str, Any] = {"name": "a", "dataset_name": "a.txt,b.txt", "dataset_weights": "0.7,0.3"}
    run = saved(tmp_path, **settings)
    stored = yaml.safe_load(run.folder.config.read_text())
    assert (stored["dataset_name"], stored["dataset_weights"]) == (["a.txt", "b.txt"], [0.7, 0.3])
    run.folder.config.write_text(yaml.safe_dump(stored | settings))
    again = find_run(config(tmp_path, **settings))
    assert again.previous == again.config == run.config
    with pytest.raises(ValueError, match=r"\(dataset_weights 0.7,0.3 -> 0.5,0.5\)"):
        find_run(config(tmp_path, **settings | {"dataset_weights": (0.5, 0.5)}))


def test_must_needs_something_to_resume(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--resume must needs --name"):
        find_run(config(tmp_path, resume="must"))
    with pytest.raises(ValueError, match=r"nothing to resume: .* has no run 'a'"):
        find_run(config(tmp_path, name="a", resume="must"))
    run = started(tmp_path, name="a")
    create_directory(run.folder.checkpoints, step=1)  # a save that was killed
    with pytest.raises(
        ValueError, match=r"run 'a' in .* has not saved yet .*; --config .*/a/config.yaml starts it again"
    ):
        find_run(config(tmp_path, name="a", resume="must"))
    save(run)
    assert find_run(config(tmp_path, name="a", resume="must")).previous is not None


def test_never_needs_a_name_that_has_not_saved(tmp_path: Path) -> None:
    run = started(tmp_path, name="a", resume="never")
    assert find_run(config(tmp_path, name="a", resume="never")).previous is None
    save(run)
    with pytest.raises(ValueError, match=r"run 'a' exists in .*: choose another --name"):
        find_run(config(tmp_path, name="a", resume="never"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seq_length": 32}, r"\(seq_length 64 -> 32\): set them back, or choose another --name"),
        ({"seed": 1, "weight_decay": 0.5}, r"\(weight_decay 0.01 -> 0.5, seed 42 -> 1\)"),
        ({"batch_size": 4}, r"\(global_batch_size 16 -> 8\)"),
    ],
)
def test_settings_that_make_another_run_are_refused_by_name(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    saved(tmp_path, name="a")
    with pytest.raises(ValueError, match=message):
        find_run(config(tmp_path, name="a", **changed))


def test_the_mesh_and_the_length_may_change(tmp_path: Path) -> None:
    """The global batch stays what it was, so the run means the same."""
    saved(tmp_path, name="a")
    changed = {"tp_size": 1, "batch_size": 4, "num_epochs": 3, "max_steps": 9, "save_interval_steps": 2}
    run = find_run(config(tmp_path, name="a", **changed))
    assert run.previous is not None
    assert run.start_message().splitlines()[0] == (
        f"resuming {tmp_path / 'a'} with tp_size 2 -> 1, dp_size 2 -> 4, batch_size_per_gpu 8 -> 4, "
        "num_epochs 1 -> 3, max_steps none -> 9, save_interval_steps none -> 2"
    )


@pytest.mark.parametrize(
    ("asked", "finished"),
    [
        ({}, True),
        ({"num_epochs": 2}, False),
        ({"max_steps": 20}, True),
        ({"max_steps": 21}, True),  # one epoch ends before
        ({"num_epochs": 2, "max_steps": 20}, True),
        ({"num_epochs": 2, "max_steps": 21}, False),
    ],
)
def test_a_finished_run_goes_on_only_if_it_is_asked_for_more(
    tmp_path: Path, asked: dict[str, int], finished: bool
) -> None:
    finish(started(tmp_path, name="a"), epoch=1, step=20)
    run = find_run(config(tmp_path, name="a", **asked))
    assert run.finished is finished
    assert "run 'a' is finished: step 20" in run.finished_message()
    assert ("--max-steps" in run.finished_message()) == ("max_steps" in asked)


def test_a_run_that_was_prolonged_and_killed_is_not_finished(tmp_path: Path) -> None:
    """The old summary still says finished, but of the shorter length."""
    finish(started(tmp_path, name="a"), epoch=1, step=20)
    started(tmp_path, name="a", num_epochs=2)
    assert not find_run(config(tmp_path, name="a", num_epochs=2)).finished


@pytest.mark.parametrize("name", ["a/b", "..", ".a", "-a", "a b"])
def test_a_name_is_a_folder_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="it names a folder"):
        find_run(config(tmp_path, name=name))


def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.tex").touch()
    with pytest.raises(ValueError, match="exists and is not a run of this program"):
        find_run(config(tmp_path, name="a"))
    (tmp_path / "a" / "config.yaml").write_text("model: resnet\n")
    with pytest.raises(ValueError, match="exists and is not a run of this program"):
        find_run(config(tmp_path, name="a"))
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"thesis.tex", "config.yaml"}


def test_a_damaged_configuration_is_named(tmp_path: Path) -> None:
    run = started(tmp_path, name="a")
    run.folder.config.write_text("tp_size: [")
    with pytest.raises(ValueError, match=r"run 'a' cannot be resumed, its configuration is damaged"):
        find_run(config(tmp_path, name="a"))


@pytest.mark.parametrize("path", ["/proc/tp2d", "file/runs", "s3://bucket/runs"])
def test_a_storage_path_that_cannot_be_written_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    with pytest.raises(ValueError, match=r"storage_path .*(cannot be written|must be a folder)"):
        find_run(TrainConfig(storage_path=path))


def test_the_resume_command_is_short_and_gives_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest is stored."""
    monkeypatch.chdir(tmp_path)
    storage = Path("my runs")
    run = saved(
        storage, name="a", tp_size=4, batch_size=2, global_batch_size=6, compile=True, model_name="builtin:small"
    )
    assert run.resume_command() == "tp2d resume a --storage-path 'my runs'"
    assert run.folder.config.read_text().startswith(f"# resume: {run.resume_command()}\n")
    again = find_run(TrainConfig(**resumed_settings({"name": "a", "storage_path": "my runs"})))
    assert again.config == run.config and again.previous == run.config
    assert saved(Path("runs"), name="a").resume_command() == "tp2d resume a"


def test_the_resume_command_is_hatchs_in_its_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HATCH_ENV_ACTIVE", "apps/train")
    run = find_run(config(Path("runs"), name="a"))
    assert run.resume_command() == "hatch run apps/train:fsdp2 --name a"
    assert run.path == tmp_path / "runs" / "a"


def test_a_run_that_has_not_saved_says_how_it_is_started_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To resume it would be refused, and under its name alone another run would start."""
    monkeypatch.chdir(tmp_path)
    run = started(Path("my runs"), name="a", seed=3)
    said = run.next_command()
    assert said == "nothing was saved, start again with: tp2d train --config 'my runs/a/config.yaml'"
    settings = read_yaml(shlex.split(said)[-1])
    assert find_run(TrainConfig(**resumed_settings(settings))).config == run.config
    save(run)
    assert run.next_command() == "resume with: tp2d resume a --storage-path 'my runs'"


def test_stored_settings_are_taken_where_the_run_has_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = {"name": "a", "num_epochs": 2}
    for other in ({}, {"seed": 1}, {"name": "../a"}, {"name": None}, given):
        assert resumed_settings(other) == other
    run = started(Path("runs"), name="a", seed=7, resume="never")
    assert resumed_settings(given) == given, "a name without a checkpoint is free"
    save(run)
    settings = resumed_settings(given)
    assert settings | given == settings and settings["seed"] == 7
    assert not {"storage_path", "resume"} & settings.keys()
    assert resumed_settings({**given, "storage_path": "elsewhere"}) == {**given, "storage_path": "elsewhere"}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seq_length": 32}, r"\(seq_length 64 -> 32\): set them back"),
        ({"batch_size_per_gpu": 5}, r"\(global_batch_size 16 -> 10\)"),
        ({"gradient_accumulation_steps": 2}, r"\(global_batch_size 16 -> 32\)"),
        ({"global_batch_size": 32}, r"\(global_batch_size 16 -> 32\)"),
        ({"dp_size": 3}, r"\(global_batch_size 16 -> 24\)"),
        ({"tp_size": 3}, r"tp_size 3 x dp_size 1 = 3, but num_workers is 4"),
    ],
)
def test_a_given_option_that_the_run_cannot_change_is_refused_with_both_values(
    tmp_path: Path, given: dict[str, Any], message: str
) -> None:
    saved(tmp_path, name="a")
    with pytest.raises(ValueError, match=message):
        find_run(TrainConfig(**resumed_settings({"name": "a", "storage_path": str(tmp_path), **given})))
