"""From a checkpoint of any mesh and either engine to the safetensors files of a Hugging Face folder.

One process, no process group, no GPU: tensors are read whole from the checkpoint and written file by file, so that
memory holds one file's tensors at a time, however large the model is.
"""

from __future__ import annotations

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
    """Write a checkpoint's weights as ``model.safetensors``, or as several files and their index.

    Every file of the checkpoint is compared with its checksum first.

    Args:
        info: the checkpoint.
        folder: an existing folder; files of these names in it are replaced.
        dtype: of the written weights; None keeps the checkpoint's.
        file_bytes: a file holds at most this, or one tensor.

    Returns:
        The names of the parameters written, each under its full name in the model, a tied one once.

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
    """Names in their order, cut where the next tensor would make a file too large."""
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
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # that is what is wanted
        load_tensors(path, boxes, group=None)
    return whole


def _write_index(folder: Path, files: Mapping[str, list[str]], *, size: int) -> None:
    weight_map = {name.removeprefix(PREFIX): file for file, names in files.items() for name in names}
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
