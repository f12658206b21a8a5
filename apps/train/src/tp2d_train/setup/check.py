"""What the driver can know before a worker starts, checked in the order of what it costs to find out.

Every refusal is a `ValueError` that names the option, the numbers and the way out.
"""

import dataclasses
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tp2d_train.config import TrainConfig
from tp2d_train.runs import Run, find_run

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from tp2d_train.models import ResolvedModel

PATH_FIELDS = ("model_name", "tokenizer_name", "deepspeed_config")


def check(config: TrainConfig) -> Run:
    """Checks a configuration, and returns the run it starts or resumes.

    Raises:
        ValueError: the first thing that cannot work.
    """
    run = find_run(absolute_paths(config))
    if run.finished:
        return run
    config = run.config
    here = config.launcher == "local" or not has_cluster()
    device = choose_device(config, gpus=count_gpus()) if here else "cpu" if config.device == "cpu" else "cuda"
    check_deepspeed(config, device=device)
    from tp2d_train.models import resolve_model

    model = resolve_model(
        config.model_name,
        from_scratch=config.from_scratch,
        trust_remote_code=config.trust_remote_code,
        need_weights=False,
    )
    check_positions(config, model.config)
    check_data(config)
    check_model(config, model.config)
    check_tokenizer(config, model)
    return run


def absolute_paths(config: TrainConfig) -> TrainConfig:
    """The configuration with the names of existing local files and folders made absolute: workers run elsewhere."""
    given = {name: getattr(config, name) for name in PATH_FIELDS}
    absolute: dict[str, Any] = {name: _absolute(value) for name, value in given.items() if value}
    datasets = ",".join(map(_absolute, config.dataset_names))
    return dataclasses.replace(config, **absolute, dataset_name=datasets)


def _absolute(name: str) -> str:
    path = Path(name).expanduser()
    return os.path.abspath(path) if path.exists() else name  # noqa: PTH100


def check_positions(config: TrainConfig, model: "PretrainedConfig") -> None:
    """Refuses rows longer than the model has positions."""
    positions = getattr(model.get_text_config(), "max_position_embeddings", None)
    if positions is not None and config.seq_length > positions:
        raise ValueError(
            f"seq_length {config.seq_length} is longer than the {positions} positions of {config.model_name}: "
            f"choose at most {positions}"
        )


def check_model(config: TrainConfig, model: "PretrainedConfig") -> None:
    """Refuses what the engine cannot split over `tp_size` ranks, on a model without memory."""
    import torch
    from tp2d_mesh import plan_model
    from tp2d_mesh.packed import check_packed
    from tp2d_mesh.weights import build_skeleton

    try:
        skeleton = build_skeleton(
            model,
            dtype=torch.float32,
            attn_implementation=config.attn_implementation,
            trust_remote_code=config.trust_remote_code,
        )
    except (ValueError, ImportError) as error:
        reason = str(error).splitlines()[0]  # of an unknown type transformers goes on with all it knows
        raise ValueError(f"model {config.model_name} cannot be built as a causal language model: {reason}") from None
    if config.engine == "autotp":
        from tp2d_autotp import check_model as check_autotp

        check_autotp(skeleton, tp=config.tp_size)
    else:
        plan_model(skeleton, tp=config.tp_size)
    if config.packing != "pad" and config.respect_boundaries:
        check_packed(model, attention=skeleton.config._attn_implementation or "eager", seq_length=config.seq_length)


def deepspeed_options(config: TrainConfig) -> dict[str, Any]:
    """What the engine autotp takes besides what every engine takes.

    Raises:
        ValueError: the user's DeepSpeed file cannot be read.
    """
    from tp2d_autotp import read_user_config

    return {
        "zero_stage": config.zero_stage,
        "batch_size_per_gpu": config.batch_size_per_gpu,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "deepspeed": read_user_config(Path(config.deepspeed_config)) if config.deepspeed_config else None,
    }


def check_deepspeed(config: TrainConfig, *, device: str) -> None:
    """Refuses a ZeRO stage, a precision or a user's DeepSpeed file that contradicts the run."""
    if config.engine != "autotp":
        return
    import torch
    from tp2d_autotp import deepspeed_config
    from tp2d_mesh import Layout
    from tp2d_mesh.devices import resolve_precision

    options = deepspeed_options(config)
    if config.compile:
        raise ValueError("--compile has not been checked under the engine autotp: use the engine fsdp2 for it")
    where = torch.device(device)
    deepspeed_config(
        layout=Layout(dp=config.dp_size, tp=config.tp_size),
        device=where,
        precision=resolve_precision(config.precision, where),
        max_grad_norm=config.max_grad_norm,
        user=options.pop("deepspeed"),
        **options,
    )


def check_data(config: TrainConfig) -> None:
    """Refuses a dataset that is not there, has no such configuration, split or field, or holds nothing."""
    from tp2d_data import Corpus, Task, check_source, check_weights

    check_weights(config.weights, len(config.dataset_names), streaming=config.streaming)
    task = Task(**task_options(config))
    for name in config.dataset_names:
        check_source(Corpus(dataset_name=name, task=task, streaming=config.streaming, **source_options(config)))


def source_options(config: TrainConfig) -> dict[str, Any]:
    """What the data package takes to find a dataset's documents."""
    return {
        "dataset_config": config.dataset_config,
        "split": config.split,
        "dataset_percentage": config.dataset_percentage,
        "holdout": config.holdout_percentage / 100,
    }


def task_options(config: TrainConfig) -> dict[str, Any]:
    """What the data package takes to read a document."""
    from tp2d_data import Task

    return {option.name: getattr(config, option.name) for option in dataclasses.fields(Task)}


def check_tokenizer(config: TrainConfig, model: "ResolvedModel") -> None:
    """Refuses a tokenizer that cannot be loaded, cannot pad, is larger than the model, or lacks what the task needs."""
    from tp2d_data import Packing, Task, check_task, load_tokenizer

    from tp2d_train.parts import check_vocabulary

    name = config.tokenizer_name or model.tokenizer_name
    tokenizer = load_tokenizer(name, trust_remote_code=config.trust_remote_code)
    check_vocabulary(len(tokenizer), model.config)
    rows: dict[str, Any] = {"mode": config.packing, "respect_boundaries": config.respect_boundaries}
    packing = Packing(seq_length=config.seq_length, **rows)
    check_task(Task(**task_options(config)), tokenizer, append_eos=packing.appends_eos(config.append_eos))


def has_cluster() -> bool:
    """Whether Ray workers would start on a cluster that exists, whose devices only Ray knows, not on this machine."""
    ray = sys.modules.get("ray")
    return bool(os.environ.get("RAY_ADDRESS")) or (ray is not None and ray.is_initialized())


def count_gpus() -> int:
    """The GPUs of this machine that torch can use."""
    import torch
    from tp2d_mesh.devices import select_device

    return 0 if select_device("auto").type == "cpu" else torch.accelerator.device_count()


def choose_device(config: TrainConfig, *, gpus: int) -> str:
    """Where the workers compute, `cpu` or `cuda`, given how many GPUs there are for them.

    Raises:
        ValueError: fewer GPUs than `--device cuda` needs, or a precision that the device does not have.
    """
    import torch
    from tp2d_mesh.devices import resolve_precision

    if config.device != "cpu" and gpus >= config.num_workers:
        return "cuda"
    if config.device == "cuda":
        raise ValueError(f"device 'cuda' needs a GPU for each of the {config.num_workers} workers, there are {gpus}")
    resolve_precision(config.precision, torch.device("cpu"))
    return "cpu"


def check_room(config: TrainConfig, *, slots: Mapping[str, int]) -> None:
    """Refuses a cluster that has no room for the workers, or none without a tensor-parallel group on two nodes.

    Args:
        config: the configuration.
        slots: how many workers every node can hold, by node.
    """
    from tp2d_mesh import Layout
    from tp2d_mesh.placement import check_capacity

    if not config.allow_cross_node_tp:
        check_capacity(slots, layout=Layout(dp=config.dp_size, tp=config.tp_size))
    elif sum(slots.values()) < config.num_workers:
        raise ValueError(f"the cluster holds {sum(slots.values())} workers, num_workers is {config.num_workers}")
