"""DeepSpeed's configuration: what is written for a run, what a user may add, and every refusal."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tp2d_autotp import USER_KEYS, AutoTPSpec, check, deepspeed_config, read_user_config
from tp2d_autotp.config import precision_sections
from tp2d_mesh import PRECISIONS, Layout

CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)


def written(*, device: torch.device = CPU, **options: Any) -> dict[str, Any]:
    return deepspeed_config(AutoTPSpec(**options), layout=Layout(dp=2, tp=2), device=device)


def test_batch_sizes_count_dp_ranks_not_all_ranks() -> None:
    config = written(batch_size_per_gpu=3, gradient_accumulation_steps=4)
    assert config["train_batch_size"] == 2 * 3 * 4
    assert config["train_micro_batch_size_per_gpu"] == 3
    assert config["gradient_accumulation_steps"] == 4
    assert config["tensor_parallel"] == {"autotp_size": 2}
    assert config["gradient_allreduce_op"] == "sum"


@pytest.mark.parametrize(("clip", "value"), [(None, 0.0), (1.0, 1.0)])
def test_clipping(clip: float | None, value: float) -> None:
    assert written(max_grad_norm=clip)["gradient_clipping"] == value


@pytest.mark.parametrize(
    ("precision", "section", "keys"),
    [
        ("fp32", "bf16", {"enabled": False}),
        ("bf16", "bf16", {"enabled": True}),
        ("bf16", "data_types", {"grad_accum_dtype": "fp32"}),
        ("bf16-pure", "bf16", {"bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}),
        ("fp16", "fp16", {"enabled": True, "loss_scale": 0}),
    ],
)
def test_precision(precision: str, section: str, keys: dict[str, Any]) -> None:
    assert keys.items() <= written(precision=precision, device=GPU)[section].items()


def test_every_precision_is_told_in_deepspeeds_words() -> None:
    """Shows a section that one precision leaves to another: bf16 sums in bf16, or fp32 that is cast."""
    fp32_sums = {"data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"}
    off: dict[str, Any] = {"bf16": {"enabled": False, "check_grad_overflow": True}, "fp16": {"enabled": False}}
    on = {"enabled": True, "check_grad_overflow": True}
    pure = on | {"bf16_master_weights_and_grads": True, "bf16_optimizer_states": True}
    expected = {
        "fp64": off,
        "fp32": off,
        "bf16": off | {"bf16": on} | fp32_sums,
        "bf16-pure": off | {"bf16": pure},
        "fp16": off | {"fp16": {"enabled": True, "loss_scale": 0, "hysteresis": 1}} | fp32_sums,
    }
    assert {name: precision_sections(precision) for name, precision in PRECISIONS.items()} == expected


def test_overlap_comm_is_written_only_where_it_is_chosen() -> None:
    assert written(zero_stage=2)["zero_optimization"] == {"stage": 2}
    assert written(zero_stage=2, overlap_comm=True)["zero_optimization"] == {"stage": 2, "overlap_comm": True}


def test_the_users_keys_are_merged_in_and_auto_means_the_runs() -> None:
    user = {
        "train_batch_size": "auto",
        "gradient_clipping": 1,
        "zero_optimization": {"stage": 1, "reduce_bucket_size": 500, "overlap_comm": True},
        "wall_clock_breakdown": True,
        "tensorboard": {"enabled": True, "output_path": "logs"},
    }
    config = written(deepspeed_config=user, batch_size_per_gpu=2)
    assert config["train_batch_size"] == 4
    assert config["zero_optimization"] == {"stage": 1, "reduce_bucket_size": 500, "overlap_comm": True}
    assert config["wall_clock_breakdown"] is True
    assert config["tensorboard"] == {"enabled": True, "output_path": "logs"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"zero_stage": 0}, "zero_stage=0 reports a wrong gradient norm in bf16 and clips by it: use zero_stage=1"),
        ({"zero_stage": 3}, "zero_stage=3 splits the weights over dp as well, .* use the engine fsdp2"),
        ({"zero_stage": 4}, "zero_stage=4 is not a ZeRO stage: choose 1 or 2."),
        ({"precision": "fp8"}, "precision='fp8' is not known: choose one of auto, fp64, fp32, bf16, bf16-pure, fp16."),
        ({"precision": "fp16"}, "precision='fp16' needs a GPU and the device is the CPU: choose 'fp32' or 'bf16'."),
        ({"batch_size_per_gpu": 0}, "batch_size_per_gpu=0 is not a size: give a whole number of at least 1."),
        ({"gradient_accumulation_steps": -1}, "gradient_accumulation_steps=-1 is not a size"),
    ],
)
def test_refused_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        written(**options)


@pytest.mark.parametrize(
    ("user", "message"),
    [
        (
            {"train_batch_size": 64},
            "deepspeed_config sets train_batch_size=64, and the run has 16 (dp_size 2 x batch_size_per_gpu 2 x "
            "gradient_accumulation_steps 4): make them agree, or leave the key out.",
        ),
        ({"train_micro_batch_size_per_gpu": 8}, "train_micro_batch_size_per_gpu=8, and the run has 2 (batch_size_per"),
        ({"zero_optimization": {"stage": 2}}, "sets zero_optimization.stage=2, and the run has 1 (zero_stage)"),
        ({"tensor_parallel": {"autotp_size": 4}}, "sets tensor_parallel.autotp_size=4, and the run has 2 (tp_size)"),
        ({"bf16": {"enabled": True}}, "sets bf16.enabled=true, and the run has false (precision)"),
        ({"bf16": {"check_grad_overflow": False}}, "check_grad_overflow=false, and the run has true (a step whose"),
        ({"gradient_clipping": 0.5}, "sets gradient_clipping=0.5, and the run has 1.0 (max_grad_norm, 0 for none)"),
        ({"gradient_allreduce_op": "mean"}, 'sets gradient_allreduce_op="mean", and the run has "sum" (the loss is'),
        ({"optimizer": {"type": "AdamW"}}, "sets optimizer: leave it out; use the run's optimizer, learning_rate and"),
        ({"scheduler": {"type": "WarmupLR"}}, "sets scheduler: leave it out; use the run's lr_scheduler"),
        ({"tensor_parallel": {"preset_model": "qwen2"}}, "sets tensor_parallel.preset_model: leave it out; the split"),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}},
            "sets zero_optimization.offload_optimizer: leave it out; it compiles DeepSpeed's own optimizer",
        ),
        (
            {"zero_optimization": {"round_robin_gradients": True}},
            "sets zero_optimization.round_robin_gradients, which has not been checked for exact gradients",
        ),
        ({"prescale_gradients": True}, "sets prescale_gradients, which has not been checked for exact gradients"),
        ({"bf16": {"immediate_grad_update": True}}, "sets bf16.immediate_grad_update, which has not been checked"),
    ],
)
def test_what_contradicts_the_run_or_is_not_checked_is_refused_by_name(user: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        written(deepspeed_config=user, batch_size_per_gpu=2, gradient_accumulation_steps=4)


def test_deepspeed_accepts_what_is_written() -> None:
    """Would show a key that DeepSpeed's own configuration does not know; every key a user may set is in it."""
    from deepspeed.runtime.config import DeepSpeedConfig

    values: dict[str, Any] = {
        "allgather_bucket_size": 500,
        "fp16.initial_scale_power": 8,
        "fp16.loss_scale_window": 9,
        "fp16.min_loss_scale": 1,
        "log_level": "warning",
        "reduce_bucket_size": 500,
        "steps_per_print": 5,
    }
    sections = {"comet", "comms_logger", "csv_monitor", "flops_profiler", "tensorboard", "wandb"}
    user: dict[str, Any] = {}
    for key in USER_KEYS:
        section, _, leaf = key.rpartition(".")
        value = {"enabled": False} if key in sections else values.get(key, values.get(leaf, True))
        (user.setdefault(section, {}) if section else user)[leaf] = value
    spec = AutoTPSpec(precision="fp16", deepspeed_config=user)
    config = deepspeed_config(spec, layout=Layout(dp=1, tp=1), device=GPU)
    known = DeepSpeedConfig(config)
    assert known.train_batch_size == 1
    assert known.zero_config.reduce_bucket_size == 500
    assert known.float16_config.initial_scale_power == 8 and known.float16_config.hysteresis == 1


def test_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text(json.dumps({"steps_per_print": 5}))
    assert read_user_config(tmp_path / "ds.json") == {"steps_per_print": 5}
    for path in (tmp_path / "ds.json", str(tmp_path / "ds.json")):
        assert written(deepspeed_config=path)["steps_per_print"] == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read: No such file or directory."),
        ("{", "is not JSON: "),
        ("[1]", "holds a list; give a JSON object."),
        ('{"a": 1, "a": 2}', "deepspeed_config gives 'a' twice: leave one of them out."),
    ],
)
def test_a_bad_file_is_refused(text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "ds.json").write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        written(deepspeed_config=tmp_path / "ds.json")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compile": True}, "compile=True has not been checked under DeepSpeed AutoTP: use the engine fsdp2 for it."),
        (
            {"float8": True},
            "float8=True is not done under DeepSpeed AutoTP: use the engine fsdp2, or leave float8 out.",
        ),
        ({"zero_stage": 3}, "zero_stage=3 splits the weights over dp as well"),
        ({"precision": "fp16"}, "precision='fp16' needs a GPU and the device is the CPU"),
        (
            {"deepspeed_config": {"train_batch_size": 64}},
            "deepspeed_config sets train_batch_size=64, and the run",
        ),
    ],
)
def test_a_driver_is_told_without_a_model(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        check(AutoTPSpec(**options), layout=Layout(dp=2, tp=2), device=CPU)
    assert check(AutoTPSpec(), layout=Layout(dp=2, tp=2), device=CPU) is None


def test_the_pure_parts_do_not_import_deepspeed_or_transformers() -> None:
    """The command line checks a configuration with them before anything starts."""
    code = (
        "import sys, torch, tp2d_autotp; from tp2d_mesh import Layout;"
        "where = {'layout': Layout(dp=1, tp=1), 'device': torch.device('cpu')};"
        "tp2d_autotp.check(tp2d_autotp.AutoTPSpec(), **where);"
        "sys.exit(bool({'deepspeed', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
