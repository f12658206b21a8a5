"""Writes the weights of a checkpoint as the safetensors files of a Hugging Face folder, whatever mesh saved them.

It runs in one process, without a process group and without a GPU. Each file's tensors are read whole from the
checkpoint, so memory holds the tensors of one file at a time, however large the model is.
"""

import json
import math
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from tp2d_mesh import NamedTensor, Piece

from tp2d_ckpt.commit import CheckpointInfo, TensorRecord, verify
from tp2d_ckpt.dcp import load_tensors

PREFIX = "model."


def export_weights(
    info: CheckpointInfo, folder: Path, *, dtype: torch.dtype | None = None, file_bytes: int = 5 << 30
) -> list[str]:
    """Write a checkpoint's weights as `model.safetensors`, or as several files and their index.

    First every file of the checkpoint is compared with its checksum.

    Args:
        info: the checkpoint.
        folder: an existing folder; files of these names in it are replaced.
        dtype: the dtype to write; None keeps that of the checkpoint.
        file_bytes: the most bytes of a file, but that a larger tensor has a file of its own.

    Returns:
        The full names of the parameters written; a tied one is written once.

    Raises:
        ValueError: the checkpoint is damaged, or holds no weights.
    """
    records = {n: r for n, r in verify(info.path).tensors.items() if n.startswith(PREFIX)}
    if not records:
        raise ValueError(f"the checkpoint {info.path} holds no weights: no tensor's name starts with {PREFIX!r}.")
    groups = list(_groups(records, dtype=dtype, file_bytes=file_bytes))
    files = {_file_name(i, len(groups)): names for i, names in enumerate(groups)}
    for file, names in files.items():
        tensors = _read(info.path, {name: records[name] for name in names})
        converted = {name.removeprefix(PREFIX): t if dtype is None else t.to(dtype) for name, t in tensors.items()}
        save_file(converted, folder / file, metadata={"format": "pt"})
    if len(files) > 1:
        _write_index(folder, files, size=sum(_bytes(r, dtype) for r in records.values()))
    return [name.removeprefix(PREFIX) for name in records]


def _groups(records: Mapping[str, TensorRecord], *, dtype: torch.dtype | None, file_bytes: int) -> Iterator[list[str]]:
    """The names of each file's tensors, in their order; a file ends where the next tensor would make it too large."""
    names: list[str] = []
    held = 0
    for name, record in records.items():
        size = _bytes(record, dtype)
        if names and held + size > file_bytes:
            yield names
            names, held = [], 0
        names.append(name)
        held += size
    yield names


def _bytes(record: TensorRecord, dtype: torch.dtype | None) -> int:
    return math.prod(record.shape) * (dtype or _dtype(record)).itemsize


def _dtype(record: TensorRecord) -> torch.dtype:
    return getattr(torch, record.dtype)


def _file_name(index: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{index + 1:05d}-of-{count:05d}.safetensors"


def _read(path: Path, records: Mapping[str, TensorRecord]) -> dict[str, torch.Tensor]:
    whole = {name: torch.empty(record.shape, dtype=_dtype(record)) for name, record in records.items()}
    boxes = {
        name: NamedTensor(name=name, global_shape=tuple(t.shape), pieces=(Piece(offsets=(0,) * t.dim(), tensor=t),))
        for name, t in whole.items()
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # intended: one process
        load_tensors(path, boxes, group=None)
    return whole


def _write_index(folder: Path, files: Mapping[str, list[str]], *, size: int) -> None:
    weight_map = {name.removeprefix(PREFIX): file for file, names in files.items() for name in names}
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
