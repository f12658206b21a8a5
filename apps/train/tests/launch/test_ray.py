"""The main job under Ray: by its command, on a cluster that is there already, and in a trainer of the user's own.

One test starts a cluster by the real command; the others share one that this process has started, as the launcher does.
"""

import json
import math
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tp2d_train import TrainConfig, train_func
from tp2d_train.commands.train import main

from apps.train.tests.command_line import losses, processes_below, run_while, start, wait_for_step, write_text

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.timeout(900)

LINE = ["--name", "a", "--log-interval", "1", "--warmup-steps", "3"]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str, str]:
    """The folder, exit code, stdout and stderr of the built-in job, on a cluster of its own, after a SIGINT."""
    folder = tmp_path_factory.mktemp("ray")
    with start(LINE, folder) as process:
        wait_for_step(folder / "runs" / "a", 3, running=lambda: process.poll() is None)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    return folder, process.returncode, out, err


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """This process's connection to a cluster of this machine, which the launcher keeps."""
    from tp2d_train.launch import ray as launcher

    with launcher.cluster(TrainConfig()) as local:
        assert local
        yield


def test_the_built_in_job_stops_when_it_is_asked(stopped: tuple[Path, int, str, str]) -> None:
    """2x2 out of the box; under Ray a request to stop reaches the workers through a file."""
    folder, code, out, err = stopped
    assert (code, err) == (128 + signal.SIGINT, "")
    assert out.splitlines()[-1].startswith("stopped; resume with: tp2d resume a")
    summary = json.loads((folder / "runs" / "a" / "summary.json").read_text())
    assert summary["mesh"] == "2x2 (dp x tp)" and not summary["finished"]
    assert summary["step"] == losses(folder / "runs" / "a")[-1]["step"]


def test_the_built_in_job_resumes_on_another_mesh_and_learns(
    stopped: tuple[Path, int, str, str],
    cluster: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """On half of the workers, with the same global batch."""
    monkeypatch.chdir(stopped[0])
    folder = stopped[0] / "runs" / "a"
    end = losses(folder)[-1]["step"] + 10
    assert main([*LINE, "--tp-size", "1", "--dp-size", "2", "--max-steps", str(end)]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert "resumed from step-" in out
    steps = losses(folder)
    assert [line["step"] for line in steps] == list(range(1, len(steps) + 1))
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["finished"] and summary["mesh"] == "2x1 (dp x tp)" and summary["step"] == len(steps) == end
    assert steps[0]["loss"] == pytest.approx(math.log(4096), rel=0.02)
    assert summary["eval_loss"] < math.log(4096) - 1
    assert (folder / "loss.png").stat().st_size > 10_000


def test_a_killed_worker_is_one_line(
    cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its peer fails too, and Ray prints a page on the lost process, which belongs into a file."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "a"

    def kill_one(running: Callable[[], bool]) -> None:
        wait_for_step(folder, 2, running=running)
        os.kill(processes_below(os.getpid(), command=b"RayTrainWorker")[0], signal.SIGKILL)

    assert run_while([*LINE, "--dp-size", "1"], kill_one) == 1
    out, err = capfd.readouterr()
    cause = r"rank [01] died without raising \(killed, out of memory, "
    assert re.match(rf"error: {cause}.*; nothing was saved, start again with: tp2d train --config .*\)\n$", err)
    assert "raylet" not in out
    assert "raylet" in (folder / "ray.log").read_text()


def test_a_trainer_of_the_users_own(cluster: None, tmp_path: Path) -> None:
    """The metrics Ray keeps are the epoch's; files and checkpoints are in Ray's folder, whatever the settings say."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    write_text(tmp_path, lines=30)
    template = {
        "model_name": "builtin:tiny",
        "dataset_name": str(tmp_path / "text.txt"),
        "dataset_percentage": 100.0,
        "holdout_percentage": 0.0,
        "seq_length": 16,
        "batch_size": 2,
        "tp_size": 2,
        "num_epochs": 2,
        "debug_steps": 2,
        "log_interval": 1,
    }
    trainer = TorchTrainer(
        train_func,
        train_loop_config=template,
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(name="own", storage_path=str(tmp_path / "results")),
    )
    result = trainer.fit()
    folder = tmp_path / "results" / "own"
    assert Path(result.path) == folder
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["finished"] and summary["mesh"] == "1x2 (dp x tp)" and summary["step"] == 4
    assert result.metrics is not None and result.checkpoint is not None
    assert (result.metrics["epoch"], result.metrics["step"]) == (1, 4)
    assert result.metrics["loss"] == pytest.approx(summary["mean_loss"])
    assert Path(result.checkpoint.path).parent == folder / "checkpoints"
