"""`train_func` in a `TorchTrainer` of the user's own, on a real Ray cluster of this machine."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

ray = pytest.importorskip("ray")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    ray.init(address="local", num_cpus=3, include_dashboard=False, log_to_driver=False, object_store_memory=128 << 20)
    yield
    ray.shutdown()


def test_a_trainer_of_the_users_own(cluster: None, tmp_path: Path) -> None:
    """The metrics Ray keeps are the epoch's; files and checkpoints are in Ray's folder, whatever the settings say."""
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer
    from tp2d_train.worker import train_func

    text = tmp_path / "text.txt"
    text.write_text("".join(f"line {at} has some words in it\n" for at in range(30)))
    template = {
        "model_name": "builtin:tiny",
        "dataset_name": str(text),
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
