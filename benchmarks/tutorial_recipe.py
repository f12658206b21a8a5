"""The recipe of the Ray Train tutorials for tensor x data parallelism, written from their description: a baseline.

    python benchmarks/tutorial_recipe.py --model-name DIR --dataset-name DIR --storage-path DIR --budget 300

"Get started with 2D Parallelism using FSDP2 and Ray Train" and "... using DeepSpeed and Ray Train": every rank loads
the dataset, tokenises it a line at a time and pads every line to `seq_length`; the rows are dealt out by dp rank; the
loss is each rank's mean; a checkpoint is saved and reported at the end of each epoch. None of it is slowed down. What
differs from the tutorials is in the baseline's favour, or needed for the comparison:

- weights start from the seed, in fp32 on CPUs (bf16, theirs on GPUs, is slower there), and no model is downloaded;
- `map` runs in this process (the tutorials' `num_proc=1` starts a pool for it);
- AdamW of fsdp2 uses `foreach` (theirs is a loop over the parameters), and nothing is logged;
- DeepSpeed is kept from compiling its shared-memory operation, 130 s on its first start;
- `--budget` seconds after this process began it finishes its step, saves and exits.

Prints nothing of its own; leaves `result.json` (what was measured) and its checkpoints in `<storage-path>/<name>/`.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

STARTED = time.time()

DP, TP = 2, 2
WEIGHT_DECAY, MAX_GRAD_NORM, SEED, EPOCHS = 0.01, 1.0, 42, 100_000
ENVIRONMENT = {  # a quiet local Ray, and a DeepSpeed that looks for no GPU; set for the workers too
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "DS_ACCELERATOR": "cpu",
    "TORCHDYNAMO_DISABLE": "1",
}


def train_func(config: dict[str, Any]) -> None:
    """One worker: the data, the model, and steps until the time is up."""
    import ray.train
    import torch

    rank = ray.train.get_context().get_world_rank()
    torch.manual_seed(SEED)
    trainer = Fsdp2(config, rank) if config["engine"] == "fsdp2" else AutoTP(config, rank)
    loader = create_dataloader(config, dp_rank=rank // TP)
    tokens, curve = 0, []
    for epoch in range(EPOCHS):
        loader.sampler.set_epoch(epoch)
        stopped = False
        for batch in loader:
            loss = trainer.step(batch)
            tokens += int((batch["labels"][:, 1:] != -100).sum())
            curve.append((time.time() - config["started"], loss))
            if stopped := time_is_up(config):
                break
        trainer.save(epoch)
        if stopped:
            break
    write_result(config, rank=rank, tokens=tokens, curve=curve, epoch=epoch)


def create_dataloader(config: dict[str, Any], *, dp_rank: int) -> Any:
    """Rows of one line each, padded to `seq_length`, sharded by dp rank."""
    from datasets import load_dataset
    from torch.utils.data import DataLoader
    from torch.utils.data.distributed import DistributedSampler
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(config["model_name"])
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    length = config["seq_length"]

    def tokenize(rows: dict[str, list]) -> dict[str, list]:
        return tokenizer(rows["text"], padding="max_length", truncation=True, max_length=length)

    def label(rows: dict[str, list]) -> dict[str, list]:
        pairs = zip(rows["input_ids"], rows["attention_mask"], strict=True)
        return {"labels": [[t if real else -100 for t, real in zip(*pair, strict=True)] for pair in pairs]}

    data = load_dataset(config["dataset_name"], split="train")
    data = data.map(tokenize, batched=True, keep_in_memory=True, remove_columns=data.column_names)
    data = data.filter(lambda row: sum(row["attention_mask"]) > 1, keep_in_memory=True)
    data = data.map(label, batched=True, keep_in_memory=True)
    data.set_format(type="torch", columns=["input_ids", "attention_mask", "labels"])
    sampler: DistributedSampler = DistributedSampler(data, num_replicas=DP, rank=dp_rank, shuffle=True, seed=SEED)
    return DataLoader(data, batch_size=config["batch_size_per_gpu"], sampler=sampler, drop_last=True)


def build_model(config: dict[str, Any]) -> Any:
    """The whole model, on every rank."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(config["model_name"]), dtype=torch.float32)


class Fsdp2:
    """DTensor tensor parallelism of every layer by the names of Llama and Qwen2, then FSDP2 over dp."""

    def __init__(self, config: dict[str, Any], rank: int) -> None:
        import torch
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
        from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

        mesh = init_device_mesh("cpu", (DP, TP), mesh_dim_names=("dp", "tp"))
        plan: dict[str, Any] = {f"self_attn.{name}_proj": ColwiseParallel() for name in "qkv"}
        plan |= {"self_attn.o_proj": RowwiseParallel(), "mlp.down_proj": RowwiseParallel()}
        plan |= {"mlp.gate_proj": ColwiseParallel(), "mlp.up_proj": ColwiseParallel()}
        self.model = build_model(config)
        for layer in self.model.model.layers:
            parallelize_module(layer, mesh["tp"], plan)
            fully_shard(layer, mesh=mesh["dp"])
        fully_shard(self.model, mesh=mesh["dp"])
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config["learning_rate"], weight_decay=WEIGHT_DECAY, foreach=True
        )
        self.model.train()
        self.rank = rank

    def step(self, batch: dict[str, Any]) -> float:
        """Forward, backward, update; returns this rank's loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.model(**batch, use_cache=False).loss
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def save(self, epoch: int) -> None:
        """A DCP checkpoint of weights and moments, reported to Ray."""
        import torch.distributed.checkpoint as dcp
        from torch.distributed.checkpoint.state_dict import get_state_dict

        with tempfile.TemporaryDirectory() as folder:
            model, optimizer = get_state_dict(self.model, self.optimizer)
            dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=folder)
            report(folder, epoch)


class AutoTP:
    """DeepSpeed's automatic tensor parallelism with ZeRO 1."""

    def __init__(self, config: dict[str, Any], rank: int) -> None:
        import deepspeed
        import torch

        vars(deepspeed.ops)["__compatible_ops__"] = {"deepspeed_shm_comm": False}
        deepspeed.init_distributed()
        model = build_model(config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=config["learning_rate"], weight_decay=WEIGHT_DECAY)
        settings = {
            "train_batch_size": config["batch_size_per_gpu"] * DP,
            "train_micro_batch_size_per_gpu": config["batch_size_per_gpu"],
            "gradient_accumulation_steps": 1,
            "gradient_clipping": MAX_GRAD_NORM,
            "zero_optimization": {"stage": 1, "overlap_comm": True},
            "tensor_parallel": {"autotp_size": TP},
            "data_parallel_size": DP,
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 2000,
        }
        self.engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings, mpu=Mpu(rank))
        self.engine.train()

    def step(self, batch: dict[str, Any]) -> float:
        """Forward, backward, update; returns this rank's loss."""
        loss = self.engine(**batch, use_cache=False).loss
        self.engine.backward(loss)
        self.engine.step()
        return loss.item()

    def save(self, epoch: int) -> None:
        """DeepSpeed's own checkpoint, reported to Ray."""
        with tempfile.TemporaryDirectory() as folder:
            self.engine.save_checkpoint(folder, tag="last", client_state={"epoch": epoch})
            report(folder, epoch)


class Mpu:
    """What DeepSpeed asks of the mesh: tp innermost."""

    def __init__(self, rank: int) -> None:
        import torch.distributed as dist

        rows = [dist.new_group([row * TP + column for column in range(TP)]) for row in range(DP)]
        columns = [dist.new_group([row * TP + column for row in range(DP)]) for column in range(TP)]
        self._dp_rank, self._tp_rank = divmod(rank, TP)
        self._tp_group, self._dp_group = rows[self._dp_rank], columns[self._tp_rank]

    def get_data_parallel_group(self) -> Any:
        return self._dp_group

    def get_model_parallel_group(self) -> Any:
        return self._tp_group

    def get_data_parallel_world_size(self) -> int:
        return DP

    def get_model_parallel_world_size(self) -> int:
        return TP

    def get_data_parallel_rank(self) -> int:
        return self._dp_rank

    def get_model_parallel_rank(self) -> int:
        return self._tp_rank


def report(folder: str, epoch: int) -> None:
    """Hands a rank's part of a checkpoint to Ray, which puts the parts into the run's storage."""
    import ray.train

    ray.train.report({"epoch": epoch}, checkpoint=ray.train.Checkpoint.from_directory(folder))


def time_is_up(config: dict[str, Any]) -> bool:
    """Whether the time is up on any rank; a collective."""
    import torch
    import torch.distributed as dist

    flag = torch.tensor([int(time.time() >= config["started"] + config["budget"])])
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag.item())


def write_result(config: dict[str, Any], *, rank: int, tokens: int, curve: list, epoch: int) -> None:
    """Rank 0 writes what was measured: predicted tokens of all dp ranks, each counted once; steps; losses."""
    import torch
    import torch.distributed as dist

    total = torch.tensor([tokens])
    dist.all_reduce(total)
    if rank == 0:
        measured = {"tokens": int(total) // TP, "steps": len(curve), "epoch": epoch, "curve": curve}
        (Path(config["storage_path"]) / config["name"] / "result.json").write_text(json.dumps(measured))


def load_weights(run: Path, model: Any, *, engine: str) -> None:
    """Loads the newest checkpoint of a run of this script into a whole model on one process, strictly."""
    import torch
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    newest = max(path for path in run.glob("checkpoint_*") if path.is_dir())  # Ray names them by their time
    if engine == "fsdp2":
        with tempfile.TemporaryDirectory() as folder:
            dcp_to_torch_save(newest, Path(folder) / "all.pt")
            model.load_state_dict(torch.load(Path(folder) / "all.pt", weights_only=True)["model"])
        return
    files = sorted((newest / "last").glob("mp_rank_*_model_states.pt"))
    parts = [torch.load(file, weights_only=True)["module"] for file in files]
    whole = {name: join([part[name] for part in parts], value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict(whole)


def join(parts: list[Any], shape: Any) -> Any:
    """The whole tensor of tp ranks' parts: replicated, or cut along the one dim whose size differs from `shape`."""
    import torch

    cut = [dim for dim, size in enumerate(shape) if parts[0].shape[dim] != size]
    return torch.cat(parts, dim=cut[0]) if cut else parts[0]


def main() -> None:
    """Starts the workers under Ray and waits for them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("fsdp2", "autotp"), default="fsdp2")
    for name in ("model-name", "dataset-name", "storage-path"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--name", default="tutorial")
    parser.add_argument("--seq-length", type=int, default=512)
    parser.add_argument("--batch-size-per-gpu", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--budget", type=float, default=300.0, help="seconds after which it stops")
    config = {**vars(parser.parse_args()), "started": STARTED}
    os.environ.update(ENVIRONMENT)

    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    ray.init(address="local", num_cpus=DP * TP, include_dashboard=False, log_to_driver=False)
    TorchTrainer(
        train_func,
        train_loop_config=config,
        scaling_config=ScalingConfig(num_workers=DP * TP, use_gpu=False),
        torch_config=TorchConfig(backend="gloo"),
        run_config=RunConfig(name=config["name"], storage_path=config["storage_path"]),
    ).fit()


if __name__ == "__main__":
    main()
