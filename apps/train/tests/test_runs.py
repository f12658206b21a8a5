"""Names, folders, and what it means to start a run under a name that exists."""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tp2d_train.config import TrainConfig
from tp2d_train.options import read_options
from tp2d_train.runs import Run, find_run, new_name


def config(storage: Path, **settings: Any) -> TrainConfig:
    return TrainConfig(storage_path=str(storage), **settings)


def started(storage: Path, **settings: Any) -> Run:
    run = find_run(config(storage, **settings))
    run.start()
    return run


def finish(run: Run, *, epoch: int, step: int) -> None:
    run.folder.summary.write_text(json.dumps({"finished": True, "epoch": epoch, "step": step}))


def test_a_run_without_a_name_gets_a_new_one_each_time(tmp_path: Path) -> None:
    runs = [find_run(config(tmp_path, model_name="org/Some-Model")) for _ in range(2)]
    assert all("-Some-Model-2x2-" in run.path.name and run.path.parent == tmp_path for run in runs)
    assert len({new_name(runs[0].config) for _ in range(20)}) > 15


def test_looking_for_a_run_leaves_nothing(tmp_path: Path) -> None:
    find_run(config(tmp_path, name="a"))
    assert list(tmp_path.iterdir()) == []


def test_the_same_name_resumes(tmp_path: Path) -> None:
    assert find_run(config(tmp_path, name="a")).previous is None
    first = started(tmp_path, name="a", seed=7)
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
    assert TrainConfig(**read_options(["--config", str(run.folder.config)])) == run.config
    assert run.config.dp_size == 4


def test_a_configuration_of_the_version_before_counts_as_unchanged(tmp_path: Path) -> None:
    """It wrote several datasets and their weights as text."""
    settings: dict[str, Any] = {"name": "a", "dataset_name": "a.txt,b.txt", "dataset_weights": "0.7,0.3"}
    run = started(tmp_path, **settings)
    saved = yaml.safe_load(run.folder.config.read_text())
    assert (saved["dataset_name"], saved["dataset_weights"]) == (["a.txt", "b.txt"], [0.7, 0.3])
    run.folder.config.write_text(yaml.safe_dump(saved | settings))
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
    with pytest.raises(ValueError, match=r"nothing to resume: run 'a' in .* has not saved yet"):
        find_run(config(tmp_path, name="a", resume="must"))
    run.folder.checkpoints.mkdir()
    assert find_run(config(tmp_path, name="a", resume="must")).previous is not None


def test_never_needs_a_new_name(tmp_path: Path) -> None:
    started(tmp_path, name="a", resume="never")
    with pytest.raises(ValueError, match=r"run 'a' exists in .*: choose another --name"):
        find_run(config(tmp_path, name="a", resume="never"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seq_length": 32}, r"\(seq_length 64 -> 32\): set them back, or choose another --name"),
        ({"seed": 1, "learning_rate": 1.0}, r"\(learning_rate 0.003 -> 1.0, seed 42 -> 1\)"),
        ({"batch_size": 4}, r"\(global_batch_size 16 -> 8\)"),
    ],
)
def test_settings_that_make_another_run_are_refused_by_name(
    tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    started(tmp_path, name="a")
    with pytest.raises(ValueError, match=message):
        find_run(config(tmp_path, name="a", **changed))


def test_the_mesh_and_the_length_may_change(tmp_path: Path) -> None:
    """The global batch stays what it was, so the run means the same."""
    started(tmp_path, name="a")
    changed = {"tp_size": 1, "batch_size": 4, "num_epochs": 3, "max_steps": 9, "save_interval_steps": 2}
    assert find_run(config(tmp_path, name="a", **changed)).previous is not None


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


def test_two_processes_do_not_train_one_run(tmp_path: Path) -> None:
    """The second is refused while the first lives, and not by what a killed one left behind."""
    run = started(tmp_path, name="a")
    code = (
        "import sys, time\nfrom tp2d_train.config import TrainConfig\nfrom tp2d_train.runs import find_run\n"
        "with find_run(TrainConfig(name='a', storage_path=sys.argv[1])).locked():\n"
        "    print('held', flush=True)\n    time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with pytest.raises(ValueError, match="run 'a' is being trained by another process"), run.locked():
            pass
        other.kill()
    with run.locked():
        pass


def test_the_resume_command_gives_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HATCH_ENV_ACTIVE", raising=False)
    run = started(tmp_path / "my runs", name="a", tp_size=4, batch_size=2, global_batch_size=6, compile=True)
    words = shlex.split(run.resume_command())
    assert words[:3] == ["python", "-m", "tp2d_train"]
    again = find_run(TrainConfig(**read_options(words[3:])))
    assert again.config == run.config and again.previous == run.config


def test_the_resume_command_names_another_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = find_run(config(Path("runs"), name="a", model_name="builtin:small"))
    assert "--model-name builtin:small" in run.resume_command()


def test_the_resume_command_is_hatchs_in_its_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HATCH_ENV_ACTIVE", "apps/train")
    run = find_run(config(Path("runs"), name="a"))
    assert run.resume_command() == "hatch run apps/train:fsdp2 --name a"
    assert run.path == tmp_path / "runs" / "a"
