"""The run under Ray Train: a cluster, a `TorchTrainer`, and an error that names the rank that died."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import ray
import torch
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from tp2d_ckpt.ray import mend_snapshot
from tp2d_mesh.devices import backend_for

from tp2d_train.config import TrainConfig
from tp2d_train.outcome import WorkerDied
from tp2d_train.report.progress import EventLog
from tp2d_train.runs.run import Run
from tp2d_train.setup.devices import choose_device
from tp2d_train.setup.mesh import check as check_mesh
from tp2d_train.training.worker import train_func

CONTROLLER_FAILURES = 3
OBJECT_STORE_BYTES = 128 << 20  # nothing goes through it: data and weights are read by the workers


def fit(run: Run) -> None:
    """Runs all ranks as Ray Train workers, on the cluster of RAY_ADDRESS or on one of its own on this machine.

    Raises:
        ValueError: the cluster has no room for the workers.
        WorkerDied, ray.train.TrainingFailedError: a rank failed for the last time.
    """
    with cluster(run.config) as local:
        gpus = int(ray.cluster_resources().get("GPU", 0))
        device = choose_device(run.config, gpus=gpus)
        backend = backend_for(device)
        what = f"starting {run.config.num_workers} Ray workers on {device} ({backend}); there are {gpus} GPUs"
        EventLog(run.folder).write("phase", message=what)
        if not local:
            check_mesh(run.config, slots=worker_slots("CPU" if device.type == "cpu" else "GPU"))
        if mended := mend_snapshot(run.path):
            EventLog(run.folder).write("warning", message=mended)
        trainer = build_trainer(run.config, device=device)
        try:
            with _prints_to(run.folder.ray_log):
                trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise _died(error) or error from None


@contextlib.contextmanager
def cluster(config: TrainConfig) -> Iterator[bool]:
    """A connection to Ray for the block's time; yields whether the cluster is our own, on this machine only.

    A program that has called `ray.init` keeps its connection. RAY_ADDRESS names a cluster (`auto`: the one running
    here). Else a quiet one is started, with as many logical CPUs as workers, however few the machine has.
    """
    if ray.is_initialized():
        yield False
        return
    logging = ray.LoggingConfig(log_level="ERROR")
    local = not os.environ.get("RAY_ADDRESS")
    if local:
        ray.init(
            address="local",
            num_cpus=max(config.num_workers, os.cpu_count() or 1),
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            logging_config=logging,
            log_to_driver=False,
        )
    else:
        _connect(logging)
    try:
        yield local
    finally:
        ray.shutdown()


def _connect(logging: ray.LoggingConfig) -> None:
    try:
        ray.init(logging_config=logging, log_to_driver=False)
    except ConnectionError as error:
        address = os.environ["RAY_ADDRESS"]
        raise ValueError(f"no Ray cluster answers at RAY_ADDRESS {address}: unset it, or start one ({error})") from None


def build_trainer(config: TrainConfig, *, device: torch.device) -> TorchTrainer:
    """The `TorchTrainer` of a configuration whose `name` and absolute `storage_path` are set.

    Args:
        config: the configuration.
        device: the kind of device on which every worker computes.
    """
    config = dataclasses.replace(config, device=device.type)
    # The types that Ray shows to a type checker are those of its older Train: hence the three marks.
    return TorchTrainer(
        train_func,  # type: ignore[arg-type]
        train_loop_config=config.as_dict(),
        scaling_config=ScalingConfig(num_workers=config.num_workers, use_gpu=device.type != "cpu"),
        torch_config=TorchConfig(backend=backend_for(device), timeout_s=max(1, int(config.timeout_s))),
        run_config=RunConfig(
            name=config.name,
            storage_path=config.storage_path,
            checkpoint_config=CheckpointConfig(num_to_keep=config.keep_checkpoints),  # as the workers' own retention
            failure_config=FailureConfig(
                max_failures=config.max_failures,
                controller_failure_limit=CONTROLLER_FAILURES,  # type: ignore[call-arg]
            ),
            worker_runtime_env=config.runtime_env,  # type: ignore[call-arg]
        ),
    )


def worker_slots(resource: str) -> dict[str, int]:
    """How many workers that need one `resource` every living node of the cluster can hold, by its address."""
    nodes = [(node["NodeManagerAddress"], node["Resources"]) for node in ray.nodes() if node["Alive"]]
    return {address: int(resources[resource]) for address, resources in nodes if resource in resources}


def _died(error: ray.train.TrainingFailedError) -> WorkerDied | None:
    """The rank whose process is gone, if one is: its peers' errors only follow from that."""
    failures = getattr(error, "worker_failures", {})
    gone = [rank for rank, cause in failures.items() if type(cause).__module__.startswith("ray.")]
    if gone:
        return WorkerDied(f"rank {min(gone)} died without raising (killed, out of memory, or a crash in native code)")
    cause = getattr(error, "controller_failure", None)
    if isinstance(cause, ray.exceptions.RayActorError):
        return WorkerDied("a worker died while the workers started (killed, out of memory, or a crash in native code)")
    return None


@contextlib.contextmanager
def _prints_to(path: Path) -> Iterator[None]:
    """Within the block what Ray prints to this process's stdout, a page for a dead worker, goes to a file."""
    with path.open("a", encoding="utf-8") as file, contextlib.redirect_stdout(file):
        yield
