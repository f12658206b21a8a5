"""How an unknown name is answered: with the known one that was meant, also where another tool calls it otherwise."""

import difflib
from collections.abc import Iterable

OTHER_NAMES = {
    "model": "model_name",
    "model_id": "model_name",
    "model_path": "model_name",
    "model_name_or_path": "model_name",
    "tokenizer": "tokenizer_name",
    "attention": "attn_implementation",
    "attn": "attn_implementation",
    "data": "dataset_name",
    "data_path": "dataset_name",
    "dataset": "dataset_name",
    "dataset_path": "dataset_name",
    "train_file": "dataset_name",
    "train_dataset": "dataset_name",
    "dataset_config_name": "dataset_config",
    "dataset_text_field": "text_field",
    "max_train_samples": "dataset_percentage",
    "validation_file": "eval_dataset",
    "eval_file": "eval_dataset",
    "holdout": "holdout_percentage",
    "validation_split_percentage": "holdout_percentage",
    "assistant_only_loss": "loss_on",
    "completion_only_loss": "loss_on",
    "block_size": "seq_length",
    "context_length": "seq_length",
    "max_length": "seq_length",
    "max_seq_length": "seq_length",
    "max_seq_len": "seq_length",
    "backend": "engine",
    "strategy": "engine",
    "deepspeed": "deepspeed_config",
    "tp": "tp_size",
    "tensor_parallel_size": "tp_size",
    "dp": "dp_size",
    "data_parallel_size": "dp_size",
    "gpus": "num_workers",
    "nproc_per_node": "num_workers",
    "num_processes": "num_workers",
    "workers": "num_workers",
    "world_size": "num_workers",
    "no_cuda": "device",
    "use_cpu": "device",
    "ddp_timeout": "timeout_s",
    "batch": "batch_size_per_gpu",
    "bs": "batch_size_per_gpu",
    "micro_batch_size": "batch_size_per_gpu",
    "per_device_batch_size": "batch_size_per_gpu",
    "per_device_train_batch_size": "batch_size_per_gpu",
    "train_batch_size": "global_batch_size",
    "optim": "optimizer",
    "lr": "learning_rate",
    "wd": "weight_decay",
    "clip_grad": "max_grad_norm",
    "gradient_clipping": "max_grad_norm",
    "lr_scheduler_type": "lr_scheduler",
    "scheduler": "lr_scheduler",
    "warmup": "warmup_steps",
    "warmup_ratio": "warmup_steps",
    "bf16": "precision",
    "fp16": "precision",
    "fp32": "precision",
    "dtype": "precision",
    "torch_dtype": "precision",
    "gradient_checkpointing": "activation_checkpointing",
    "torch_compile": "compile",
    "epochs": "num_epochs",
    "num_train_epochs": "num_epochs",
    "steps": "max_steps",
    "num_steps": "max_steps",
    "max_train_steps": "max_steps",
    "run_name": "name",
    "output": "storage_path",
    "output_dir": "storage_path",
    "checkpoint_dir": "storage_path",
    "overwrite_output_dir": "resume",
    "resume_from_checkpoint": "resume",
    "save_steps": "save_interval_steps",
    "save_strategy": "save_interval_steps",
    "save_total_limit": "keep_checkpoints",
    "eval_steps": "eval_interval_steps",
    "eval_strategy": "eval_interval_steps",
    "evaluation_strategy": "eval_interval_steps",
    "logging_steps": "log_interval",
    "disable_tqdm": "progress",
    "verbose": "log_level",
    "quiet": "progress",
}
"""The options of `TrainConfig` by the names that transformers' `TrainingArguments` and other tools have for them."""


def meant(name: object, known: Iterable[str], *, see: str = "--help") -> str:
    """What an error says about a name that is not known: `did you mean --tp-size?`, or what lists all there are.

    Args:
        name: the name as it was given; upper case, `-` and `_` make no difference.
        known: the names there are, as they are written there.
        see: what lists them.
    """
    by_letters = {_letters(one): one for one in known}
    given = _letters(str(name))
    same = by_letters.get(_OTHER_LETTERS.get(given, given))
    close = [same] if same else [by_letters[match] for match in difflib.get_close_matches(given, by_letters, n=1)]
    return f"did you mean {close[0]}?" if close else f"{see} lists all"


def _letters(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


_OTHER_LETTERS = {_letters(other): _letters(ours) for other, ours in OTHER_NAMES.items()}
