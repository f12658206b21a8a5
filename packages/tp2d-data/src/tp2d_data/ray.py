"""Ray Data as the source of a dp x tp mesh, for clusters where reading is the bottleneck; needs the extra `[ray]`.

Ray Data gives every worker other rows, but tp peers need the same batch. So the dataset is split by dp rank, and tp
rank 0 of each tp group reads its share, tokenises and packs it, and broadcasts every batch to its peers::

    from tp2d_data import load_tokenizer
    from tp2d_data.ray import MeshDataConfig, RayLoader

    def train_func(config):
        mesh = build_mesh(Layout(dp=2, tp=2))  # or any groups of yours, ranks counted tp first
        loader = RayLoader(
            ray.train.get_dataset_shard("train"),
            tokenizer=load_tokenizer("builtin:tiny"),
            seq_length=512,
            batch_size_per_gpu=8,
            tp_group=mesh.tp_group,
            dp_group=mesh.dp_group,
        )
        for epoch in range(2):
            loader.sampler.set_epoch(epoch)
            for batch in loader: ...

    TorchTrainer(
        train_func,
        datasets={"train": ray.data.read_parquet("s3://bucket/corpus")},
        dataset_config=MeshDataConfig(tp_size=2),
        scaling_config=ScalingConfig(num_workers=4),
    ).fit()

Cost: nothing is cached, so every epoch reads and tokenises anew; `create_dataloader` does that once, and is to be
preferred wherever its cache fits on the disk. A batch costs its peers one broadcast over gloo.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any, Literal

import ray.train
import torch
import torch.distributed as dist

from tp2d_data.examples import Task, check_task
from tp2d_data.packing import Mode, Packing
from tp2d_data.records import Record, require_fields
from tp2d_data.relay import RelaySampler, Share, Wire
from tp2d_data.sampler import Sharding, require_at_least, require_integer
from tp2d_data.storage import digest
from tp2d_data.tokenizer import tokenizer_identity
from tp2d_data.transfer import Transfer
from tp2d_data.windows import WINDOW_TOKENS, Windows, empty_batch

if TYPE_CHECKING:
    from ray.data import DataIterator, Dataset, ExecutionOptions
    from transformers import PreTrainedTokenizerBase

__all__ = ["MeshDataConfig", "RayLoader", "Task"]

_RECORDS = 256  # of a table asked of Ray


class MeshDataConfig(ray.train.DataConfig):
    """Splits every dataset by dp rank, and gives each share to tp rank 0; its peers get None. Ranks count tp first.

    Blocks keep their order, so that a share has the same documents in the same order whenever the same dataset is read
    with the same number of dp ranks: a position would mean nothing without that.

    Args:
        tp_size: ranks of a tp group; the number of workers is a multiple of it.
        equal: give each dp rank equally many documents; up to dp_size - 1 at the end go to none. False: all documents
            are read, and shares may differ by a block of the dataset.
        execution_options: Ray Data's, of every dataset.
    """

    def __init__(
        self, *, tp_size: int, equal: bool = True, execution_options: "ExecutionOptions | None" = None
    ) -> None:
        require_at_least("tp_size", require_integer("tp_size", tp_size), 1)
        super().__init__(datasets_to_split="all")
        self._tp_size, self._equal, self._options = tp_size, equal, execution_options

    def configure(
        self,
        datasets: "dict[str, Dataset]",
        world_size: int,
        worker_handles: Any = None,
        worker_node_ids: Any = None,
        **kwargs: Any,
    ) -> "list[dict[str, DataIterator]]":
        """Each worker's datasets, by rank; Ray calls this, and hands None on to the workers as it is.

        Raises:
            ValueError: the number of workers is not a multiple of `tp_size`.
        """
        if world_size % self._tp_size:
            raise ValueError(
                f"num_workers {world_size} is not a multiple of tp_size {self._tp_size}; give dp_size x tp_size workers"
            )
        shares: list[dict[str, Any]] = [dict.fromkeys(datasets) for _ in range(world_size)]
        for name, dataset in datasets.items():
            dataset = dataset.copy(dataset)
            options = copy.deepcopy(self._options or self.default_ingest_options())
            options.preserve_order = True
            dataset.context.execution_options = options
            splits = dataset.streaming_split(world_size // self._tp_size, equal=self._equal)
            for dp_rank, split in enumerate(splits):
                shares[dp_rank * self._tp_size][name] = split
        return shares


class RayLoader:
    """The batches of this rank, of a shard of Ray Data; made and iterated by all ranks together, once per epoch.

    Batches, `sampler.set_epoch`, `state_dict` and `load_state_dict` are those of `Loader`; like a stream's, a loader of
    this kind has no `len()`. Documents come in the dataset's order, and rows are shuffled within a window of
    `window_tokens` by (seed, epoch); shuffle the dataset's files for more.

    An epoch ends for all ranks together. Documents have different lengths, so dp ranks make different numbers of rows.
    `last_batch="drop"`: the epoch ends when any dp rank has no whole batch left; the others then read on to count, in
    `left_out`, what that left out. `"pad"`: it ends when none has a row, and ranks without rows get some that count
    nothing.

    A position is the rows handed out; to go on from it, the rows before it are read and tokenised once more and thrown
    away. Another dp size would split the dataset otherwise and is refused.

    Args:
        shard: `ray.train.get_dataset_shard(name)` under `MeshDataConfig`: None on all tp ranks but 0.
        tokenizer: with a padding token, see `load_tokenizer`; the same on every rank.
        seq_length, batch_size_per_gpu, seed, packing, respect_boundaries, append_eos, last_batch, device: as
            `create_dataloader` has them.
        tp_group: the ranks that get the same batch; can carry CPU tensors (gloo).
        dp_group: the ranks with this tp rank; can carry CPU tensors (gloo).
        task: which columns are read and what of them is learnt.
        window_tokens: of a window.
        prefetch: batches prepared ahead; 0: made when they are asked for.

    Attributes:
        left_out: rows that no rank was given, of the epoch that ended last; None before that.

    Raises:
        ValueError: an argument out of range, a group without gloo, a shard where none should be, or none where one
            should.
    """

    statistics = None

    def __init__(
        self,
        shard: "DataIterator | None",
        *,
        tokenizer: "PreTrainedTokenizerBase",
        seq_length: int,
        batch_size_per_gpu: int,
        tp_group: dist.ProcessGroup,
        dp_group: dist.ProcessGroup,
        seed: int = 42,
        task: Task | None = None,
        packing: Mode = "best_fit",
        respect_boundaries: bool = True,
        append_eos: bool | None = None,
        last_batch: Literal["drop", "pad"] = "drop",
        window_tokens: int = WINDOW_TOKENS,
        prefetch: int = 2,
        device: torch.device | str | None = None,
    ) -> None:
        for option, value, least in (("window_tokens", window_tokens, 1), ("prefetch", prefetch, 0)):
            require_at_least(option, require_integer(option, value), least)
        _check_groups(shard, tp_group=tp_group, dp_group=dp_group)
        self.task, self.tokenizer, self.seq_length = task or Task(), tokenizer, seq_length
        self.vocab_size, self.pad_token_id = len(tokenizer), int(tokenizer.pad_token_id)
        self.packing = Packing(mode=packing, seq_length=seq_length, respect_boundaries=respect_boundaries)
        self.append_eos = self.packing.appends_eos(append_eos)
        check_task(self.task, tokenizer, append_eos=self.append_eos)
        self.sharding = Sharding(
            batch_size_per_gpu=batch_size_per_gpu,
            dp_rank=dist.get_rank(dp_group),
            dp_size=dist.get_world_size(dp_group),
            seed=seed,
            last_batch=last_batch,
        )
        self.sampler = RelaySampler(self.sharding, data=self._name(window_tokens))
        self.left_out: int | None = None
        self._shard, self._tp_group, self._dp_group = shard, tp_group, dp_group
        self._window_tokens, self._prefetch, self._device = window_tokens, prefetch, device

    def _name(self, window_tokens: int) -> str:
        """Names all that rows and their order depend on, but the dataset, which has no name."""
        packing = [self.packing.mode, self.packing.seq_length, self.packing.respect_boundaries, window_tokens]
        return digest(
            [packing, self.sharding.seed, self.task.identity(), tokenizer_identity(self.tokenizer), self.append_eos]
        )[:16]

    def __len__(self) -> int:
        raise TypeError("a loader of Ray Data has no length: nobody has counted its rows")

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return self._batches(self.sampler.begin(), self.sampler.epoch)

    def state_dict(self) -> dict[str, Any]:
        """The position as JSON, equal on every rank; see `Loader.state_dict`."""
        return self.sampler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Lets the next iteration go on behind `state`; see the class for what that costs.

        Raises:
            ValueError: not a position, or one of other settings or another dp size.
        """
        self.sampler.load_state_dict(state)

    def _batches(self, begin: int, epoch: int) -> Iterator[dict[str, torch.Tensor]]:
        transfer, total = Transfer(self._device), self.sharding.global_batch_size
        rows = self.sharding.batch_size_per_gpu
        empty = empty_batch(rows, packing=self.packing, pad_token_id=self.pad_token_id)
        wire = Wire(
            tp_group=self._tp_group,
            dp_group=self._dp_group,
            names=tuple(empty),
            shape=(rows, self.seq_length),
            drop=self.sharding.last_batch == "drop",
        )
        samples = begin
        with self._share(begin // self.sharding.dp_size, epoch) as share:
            while (batch := wire.lead(share.next(), empty=empty) if share else wire.follow()) is not None:
                samples += total
                yield self.sampler.hand_out(samples, transfer.receive(transfer.send(batch)))
            self.left_out = wire.sum(share.rest(samples // self.sharding.dp_size) if share else None)

    @contextmanager
    def _share(self, skip: int, epoch: int) -> Iterator[Share | None]:
        """What this rank reads, for the block's time; None on a rank that does not."""
        if self._shard is None:
            yield None
            return
        windows = Windows(
            tokenizer=self.tokenizer,
            task=self.task,
            append_eos=self.append_eos,
            packing=self.packing,
            window_tokens=self._window_tokens,
        )
        share = Share(
            windows,
            _records(self._shard, self.task.fields, who=f"dp rank {self.sharding.dp_rank}"),
            sharding=self.sharding,
            epoch=epoch,
            skip=skip,
            pad_token_id=self.pad_token_id,
            prefetch=self._prefetch,
        )
        with closing(share):
            yield share


def _records(shard: "DataIterator", fields: tuple[str, ...], *, who: str) -> Iterator[Record]:
    """The documents of a shard, of one epoch."""
    number = 0
    tables: Iterator[Any] = iter(shard.iter_batches(batch_size=_RECORDS, batch_format="pyarrow"))
    for table in tables:
        require_fields(f"the dataset of {who}", fields, table.column_names)
        for values in zip(*(table.column(name).to_pylist() for name in fields), strict=True):
            number += 1
            yield Record(f"{who}, document {number}", values)


def _check_groups(shard: "DataIterator | None", *, tp_group: dist.ProcessGroup, dp_group: dist.ProcessGroup) -> None:
    for name, group in (("tp_group", tp_group), ("dp_group", dp_group)):
        if "cpu:gloo" not in (config := str(dist.get_backend_config(group))):
            raise ValueError(
                f"{name} has the backend {config}, which carries no CPU tensors; make it with backend "
                "'cpu:gloo,cuda:nccl', for Ray Train by TorchConfig(backend='cpu:gloo,cuda:nccl')"
            )
    rank, size = dist.get_rank(tp_group), dist.get_world_size(tp_group)
    if (shard is None) == (rank == 0):
        raise ValueError(
            f"tp rank {rank} of {size} has {'no' if rank == 0 else 'a'} shard of the dataset, but tp rank 0 reads for "
            f"all of its group; give the trainer dataset_config=MeshDataConfig(tp_size={size})"
        )
