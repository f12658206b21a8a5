"""Tensors by name through torch.distributed.checkpoint (DCP): any mesh loads what any other mesh saved.

A piece of a tensor is a box: its offsets in the global tensor, and its shape. The planners here tell DCP about boxes
and nothing about DTensors or engines. On a save, each box becomes a write item. A box that several ranks hold is
written by one of them, chosen so that the ranks write about equally much. On a load, each box asks for exactly the
parts of saved boxes that overlap it.

DCP's metadata file is a pickle. Load only a directory that `tp2d_ckpt.commit.verify` found whole, as
`Checkpointer.load` does. The directory is an ordinary DCP checkpoint, which `torch.distributed.checkpoint.format_utils`
reads too.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    ReadItem,
    SavePlan,
    SavePlanner,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future
from tp2d_mesh import NamedTensor, Piece

from tp2d_ckpt.collective import Failure, raise_failures
from tp2d_ckpt.commit import TensorRecord


def save_tensors(
    path: Path, tensors: Mapping[str, NamedTensor], *, group: dist.ProcessGroup
) -> dict[str, TensorRecord]:
    """Write `tensors` into the directory `path`; a collective of `group`, the group of all ranks.

    Rank r writes `__r_0.distcp`, and rank 0 also `.metadata`; each file is brought to the disk.

    Args:
        path: a fresh directory on storage that all ranks share.
        tensors: this rank's boxes by name. A tensor may be missing on a rank that holds no part of it.
        group: the group of all ranks.

    Returns:
        The global shape and dtype of every tensor.

    Raises:
        ValueError: the boxes of all ranks do not make up each tensor exactly; the message names it with the numbers.
        CheckpointError: a rank could not write; the message names the rank and the cause.
    """
    writer, planner = PieceWriter(path, sync_files=True), PieceSavePlanner()
    try:
        metadata = dcp.save(dict(tensors), storage_writer=writer, planner=planner, process_group=group)
    except CheckpointException as error:
        raise_failures(f"saving to {path}", _failures(error))
        raise
    return {name: _record(found) for name, found in metadata.state_dict_metadata.items()}


def load_tensors(path: Path, tensors: Mapping[str, NamedTensor], *, group: dist.ProcessGroup | None) -> None:
    """Fill the boxes of `tensors` in place from the directory `path`; a collective of `group`, the group of all ranks.

    Every rank checks everything before the first byte is copied into a box.

    Args:
        path: a directory that `save_tensors` wrote, on any mesh, and that was verified.
        tensors: this rank's boxes by name; tensors of the checkpoint that are not named here are not read.
        group: the group of all ranks, or None for one process without a process group.

    Raises:
        ValueError: a tensor is not in the checkpoint, or has another shape or dtype there, or the saved boxes do not
            cover a box.
        CheckpointError: a rank could not read; the message names the rank and the cause.
    """
    reader = dcp.FileSystemReader(path)
    try:
        dcp.load(
            dict(tensors), storage_reader=reader, planner=PieceLoadPlanner(), process_group=group, no_dist=group is None
        )
    except CheckpointException as error:
        raise_failures(f"loading from {path}", _failures(error))
        raise


class PieceSavePlanner(dcp.DefaultSavePlanner):
    """Plans a save of `dict[str, NamedTensor]`: each box is written once, by one of the ranks that hold it."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def set_up_planner(
        self, state_dict: dict[str, Any], storage_meta: StorageMeta | None = None, is_coordinator: bool = False
    ) -> None:
        super().set_up_planner(state_dict, storage_meta, is_coordinator)
        self.boxes = _boxes(state_dict)

    def create_local_plan(self) -> SavePlan:
        items = [_write_item(tensor, piece) for tensor in self.state_dict.values() for piece in _held(tensor)]
        shapes = {name: tensor.global_shape for name, tensor in self.state_dict.items()}
        return SavePlan(items, planner_data=shapes)

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        plans = spread(all_plans)
        check_cover(all_plans, plans)
        return super().create_global_plan(plans)

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor:
        return self.boxes[write_item.index]


class PieceWriter(dcp.FileSystemWriter):
    """DCP's writer, but it raises the cause of a failure: torch reports a full disk as a wrong file position."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        try:
            return super().write_data(plan, planner)
        except RuntimeError as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__context__
            raise cause or error from None


class PieceLoadPlanner(dcp.DefaultLoadPlanner):
    """Plans a load into `dict[str, NamedTensor]`: each box reads the parts of saved boxes that overlap it."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        self.state_dict, self.metadata, self.is_coordinator = state_dict, metadata, is_coordinator
        self.boxes = _boxes(state_dict)

    def create_local_plan(self) -> LoadPlan:
        assert self.metadata is not None
        saved = self.metadata.state_dict_metadata
        return LoadPlan([item for tensor in self.state_dict.values() for item in _read_items(tensor, saved)])

    def lookup_tensor(self, index: MetadataIndex) -> torch.Tensor:
        return self.boxes[index]


def spread(plans: Sequence[SavePlan]) -> list[SavePlan]:
    """The plans of all ranks, with each box in one of them: of the ranks that hold it, the one with least to write.

    Boxes that only one rank holds are dealt out first, then the others, the largest first.

    Args:
        plans: the plan of every rank, in rank order; they are left as they are.
    """
    holders: dict[tuple[Any, ...], list[int]] = {}
    for rank, plan in enumerate(plans):
        for item in plan.items:
            holders.setdefault(_key(item), []).append(rank)
    sizes = {_key(item): _bytes(item) for plan in plans for item in plan.items}
    load, writer = [0] * len(plans), {}
    for key in sorted(holders, key=lambda k: (len(holders[k]) > 1, -sizes[k])):
        writer[key] = min(holders[key], key=lambda rank: load[rank])
        load[writer[key]] += sizes[key]
    return [
        replace(plan, items=[item for item in plan.items if writer[_key(item)] == rank], planner_data=None)
        for rank, plan in enumerate(plans)
    ]


def check_cover(all_plans: Sequence[SavePlan], plans: Sequence[SavePlan]) -> None:
    """Check that the ranks agree on shape and dtype of every tensor, and that its boxes hold all of its elements.

    DCP itself checks that boxes do not overlap.

    Args:
        all_plans: the plan of every rank, with the shapes of its tensors by name as `planner_data`.
        plans: the plans after `spread`.

    Raises:
        ValueError: the message names the first tensor that fails.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for rank, plan in enumerate(all_plans):
        for name, shape in plan.planner_data.items():
            if shapes.setdefault(name, shape) != shape:
                raise ValueError(f"{name} has shape {shape} on rank {rank} and {shapes[name]} on a lower rank.")
    held, dtypes = dict.fromkeys(shapes, 0), dict[str, torch.dtype]()
    for item in (item for plan in plans for item in plan.items):
        data, name = _data(item), item.index.fqn
        held[name] += math.prod(data.chunk.sizes)
        if dtypes.setdefault(name, data.properties.dtype) != data.properties.dtype:
            raise ValueError(f"{name} is {dtypes[name]} on one rank and {data.properties.dtype} on another.")
    for name, shape in shapes.items():
        if held[name] != math.prod(shape) or name not in dtypes:
            raise ValueError(
                f"{name} cannot be saved: the ranks' pieces hold {held[name]} elements and its shape {shape} has "
                f"{math.prod(shape)}."
            )


def _held(tensor: NamedTensor) -> Iterable[Piece]:
    """The pieces to save: not the empty ones, unless the tensor is empty, where an empty piece tells its dtype."""
    empty = 0 in tensor.global_shape
    return (piece for piece in tensor.pieces if empty or piece.tensor.numel())


def _boxes(tensors: Mapping[str, NamedTensor]) -> dict[MetadataIndex, torch.Tensor]:
    """Every box that this rank holds, by DCP's index of it: name and offsets."""
    boxes: dict[MetadataIndex, torch.Tensor] = {}
    for key, tensor in tensors.items():
        if key != tensor.name:
            raise ValueError(f"the tensor {tensor.name} is given under the name {key}: the two must be equal.")
        for piece in _held(tensor):
            index = MetadataIndex(tensor.name, piece.offsets)
            if index in boxes:
                raise ValueError(f"{tensor.name} has two pieces at {piece.offsets} on one rank.")
            boxes[index] = piece.tensor.detach()
    return boxes


def _write_item(tensor: NamedTensor, piece: Piece) -> WriteItem:
    chunk = ChunkStorageMetadata(offsets=torch.Size(piece.offsets), sizes=piece.tensor.shape)
    data = TensorWriteData(
        chunk=chunk, properties=TensorProperties(dtype=piece.tensor.dtype), size=torch.Size(tensor.global_shape)
    )
    return WriteItem(MetadataIndex(tensor.name, piece.offsets), WriteItemType.SHARD, tensor_data=data)


def _read_items(tensor: NamedTensor, saved: Mapping[str, Any]) -> list[ReadItem]:
    """The reads that fill this rank's boxes of `tensor`, checked against what was saved."""
    name, found = tensor.name, saved.get(tensor.name)
    if not isinstance(found, TensorStorageMetadata):
        raise ValueError(
            f"{name} is not among the {len(saved)} tensors of the checkpoint: it was saved from another model."
        )
    if tuple(found.size) != tensor.global_shape:
        raise ValueError(f"{name} has shape {tuple(found.size)} in the checkpoint and {tensor.global_shape} here.")
    items: list[ReadItem] = []
    for piece in tensor.pieces:
        if piece.tensor.dtype != found.properties.dtype:
            raise ValueError(f"{name} is {found.properties.dtype} in the checkpoint and {piece.tensor.dtype} here.")
        items += _reads_of_piece(name, piece, found)
    return items


def _reads_of_piece(name: str, piece: Piece, found: TensorStorageMetadata) -> list[ReadItem]:
    if not piece.tensor.numel():
        return []
    chunk = ChunkStorageMetadata(offsets=torch.Size(piece.offsets), sizes=piece.tensor.shape)
    reads = create_read_items_for_chunk_list(name, found, [chunk])
    covered = sum(math.prod(read.lengths) for read in reads)
    if covered != piece.tensor.numel():
        raise ValueError(
            f"{name}: the checkpoint holds {covered} of the {piece.tensor.numel()} elements of the piece of shape "
            f"{tuple(piece.tensor.shape)} at {piece.offsets}."
        )
    return reads


def _data(item: WriteItem) -> TensorWriteData:
    assert item.tensor_data is not None
    return item.tensor_data


def _key(item: WriteItem) -> tuple[Any, ...]:
    """A box's identity: equal for equal boxes of one tensor."""
    return item.index.fqn, tuple(_data(item).chunk.offsets), tuple(_data(item).chunk.sizes)


def _bytes(item: WriteItem) -> int:
    return math.prod(_data(item).chunk.sizes) * _data(item).properties.dtype.itemsize


def _record(found: Any) -> TensorRecord:
    return TensorRecord(shape=tuple(found.size), dtype=str(found.properties.dtype).removeprefix("torch."))


def _failures(error: CheckpointException) -> dict[int, Failure]:
    """The failures by rank. DCP's exception holds the exception of every rank that failed, with its stack apart."""
    return {
        rank: replace(Failure.of(cause), traceback="".join(stack.format()))
        for rank, (cause, stack) in error.failures.items()
    }
