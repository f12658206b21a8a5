"""Real Ray with two CPU workers: what a run keeps, where it resumes, and Ray's own list of checkpoints."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from tp2d_ckpt import Checkpointer, CheckpointInfo, find_latest, list_checkpoints
from tp2d_mesh import Layout, NamedTensor, Piece, build_mesh

pytest.importorskip("ray.train", reason="the [ray] extra is not installed")

from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from tp2d_ckpt.ray import mend_snapshot, newest, report_committed

SNAPSHOT = "checkpoint_manager_snapshot.json"


@pytest.fixture
def cluster():
    import ray

    logging = ray.LoggingConfig(log_level="ERROR")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_config=logging)
    yield
    ray.shutdown()


def tensors_of(mesh, weight):
    piece = Piece(offsets=(3 * mesh.rank,), tensor=weight)
    return {"model.w": NamedTensor(name="model.w", global_shape=(6,), pieces=(piece,))}


def fit(folder: Path, *, until: int, keep: int, num_to_keep: int | None, unreported: int | None = None):
    """Train from the newest checkpoint to step `until` on 1x2; save each step, and report all but `unreported`."""

    def train(config):  # nested, so that Ray ships it by value
        mesh = build_mesh(Layout(dp=1, tp=2), device=torch.device("cpu"))
        weight = torch.zeros(3)
        tensors = tensors_of(mesh, weight)
        checkpointer = Checkpointer(Path(config["folder"]) / "checkpoints", mesh=mesh)
        start = newest(checkpointer)
        if start is not None:
            checkpointer.load(start, tensors)
            assert weight.tolist() == [start.step] * 3
        left, said = "", ""
        for step in range(start.step + 1 if start else 1, until + 1):
            weight += 1
            info = checkpointer.save(step=step, tensors=tensors, state={}, rank_state={})
            if step == unreported:
                continue
            metrics = {"step": step, "began": start.step if start else 0, "left_before": left, "said_before": said}
            with warnings.catch_warnings(record=True) as caught:
                report_committed(info, metrics, keep=keep)
            left = str([info.step for info in list_checkpoints(checkpointer.root)])
            said = "; ".join(str(warning.message) for warning in caught)

    return TorchTrainer(
        train,
        train_loop_config={"folder": str(folder)},
        scaling_config=ScalingConfig(num_workers=2),
        torch_config=TorchConfig(backend="gloo"),
        run_config=RunConfig(
            name=folder.name,
            storage_path=str(folder.parent),
            checkpoint_config=CheckpointConfig(num_to_keep=num_to_keep),
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=1),
        ),
    ).fit()


@pytest.mark.timeout(240)
def test_a_run_resumes_at_its_last_commit_whatever_ray_remembers(cluster, tmp_path):
    """Step 5 is committed and never reported, as by a run killed between the two. Ray would resume at step 4."""
    (tmp_path / "storage").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "storage")  # Ray compares paths as text
    folder = tmp_path / "link" / "run"
    result = fit(folder, until=5, unreported=5, keep=2, num_to_keep=None)
    assert "Ray keeps 3 checkpoints and keep=2, so more are left than asked for" in result.metrics["said_before"]
    assert steps_of(folder) == [1, 2, 3, 4, 5] and listed_by_ray(folder) == [1, 2, 3, 4]

    result = fit(folder, until=7, keep=2, num_to_keep=2)
    # After step 6: 5 and 6 are the last two, and 4 is on Ray's list, which must not name what is gone.
    assert result.metrics == {"step": 7, "began": 5, "left_before": "[4, 5, 6]", "said_before": ""}
    assert Path(result.checkpoint.path) == find_latest(folder / "checkpoints").path
    assert steps_of(folder) == listed_by_ray(folder) == [6, 7]
    assert mend_snapshot(folder) is None

    (folder / SNAPSHOT).write_text((folder / SNAPSHOT).read_text()[:-20])  # its writer was killed
    with pytest.raises(Exception, match="TrainController"):
        fit(folder, until=8, keep=2, num_to_keep=2)
    assert "is not readable" in mend_snapshot(folder) and not (folder / SNAPSHOT).exists()


def steps_of(folder: Path) -> list[int]:
    return [info.step for info in list_checkpoints(folder / "checkpoints")]


def listed_by_ray(folder: Path) -> list[int]:
    return [entry["metrics"]["step"] for entry in json.loads((folder / SNAPSHOT).read_text())["checkpoint_results"]]


@pytest.mark.parametrize(
    ("value", "kind"),
    [(np.float32(1), "numpy.float32"), (np.float64(1), "numpy.float64"), (torch.ones(1), "torch.Tensor")],
)
def test_a_metric_that_would_end_rays_controller_is_refused(tmp_path, value, kind):
    info = CheckpointInfo(path=tmp_path, step=1, sequence=1)
    with pytest.raises(ValueError, match=rf"the metric loss is a {kind}: give Ray a plain Python number"):
        report_committed(info, {"step": 1, "loss": value})


def snapshot(folder: Path, names: list[str], version: str) -> None:
    results = [{"version": 0, "checkpoint_dir_name": name, "metrics": {}} for name in names]
    (folder / SNAPSHOT).write_text(json.dumps({"ray_version": version, "checkpoint_results": results}))


@pytest.mark.parametrize(
    ("names", "version", "fault"),
    [
        (["here"], None, None),
        (["here", "checkpoints/gone"], None, "names checkpoints/gone, which is gone"),
        (["here"], "1.0.0", "was written by Ray 1.0.0 and this is"),
    ],
)
def test_rays_list_is_set_aside_only_where_it_is_broken(tmp_path, names, version, fault):
    import ray

    (tmp_path / "here").mkdir()
    snapshot(tmp_path, names, version or ray.__version__)
    said = mend_snapshot(tmp_path)
    assert (tmp_path / SNAPSHOT).exists() == (fault is None)
    assert said is None if fault is None else fault in said and (tmp_path / f"{SNAPSHOT}.set-aside").exists()


def test_a_new_run_has_nothing_to_mend(tmp_path):
    assert mend_snapshot(tmp_path / "absent") is None
