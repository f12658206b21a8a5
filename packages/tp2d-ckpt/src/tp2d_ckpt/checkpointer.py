"""Saves and loads the state of a run: tensors by name, JSON state, and each rank's own state, in one checkpoint.

Every method is a collective: all ranks of the mesh call it, for the same step, and an error on one rank is raised on
all of them. The folder is on storage that all nodes share.
"""

import hashlib
import io
import json
import pickle
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tp2d_mesh import Mesh, NamedTensor

from tp2d_ckpt.collective import CheckpointError, agree, on_rank0, together
from tp2d_ckpt.commit import (
    CheckpointInfo,
    FileRecord,
    Manifest,
    TensorRecord,
    commit,
    create_directory,
    find_damage,
    find_latest,
    list_checkpoints,
    read_manifest,
    record_files,
)
from tp2d_ckpt.dcp import load_tensors, save_tensors
from tp2d_ckpt.files import write_synced
from tp2d_ckpt.retention import delete, prune, sweep

_STATE = "state.json"


@dataclass(frozen=True, kw_only=True)
class Restored:
    """What a checkpoint held besides its tensors.

    Args:
        state: the JSON state given to `Checkpointer.save`.
        rank_state: this rank's own state, or None where a mesh of another shape saved the checkpoint.
    """

    state: dict[str, Any]
    rank_state: dict[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class _Written:
    """What one rank wrote: its files, and the SHA-256 of the JSON state that it was given."""

    files: dict[str, FileRecord]
    state_sha256: str


class Checkpointer:
    """The checkpoints of one run in one folder.

    Args:
        root: the folder; the first save makes it.
        mesh: the mesh of this process.
        keep: how many checkpoints to leave after a save, or None for all. Under Ray leave it None and pass `keep` to
            `tp2d_ckpt.ray.report_committed`, which knows which checkpoints Ray still refers to.
        engine: the name of the engine, for the manifest.

    Raises:
        ValueError: `keep` is not at least 1.
    """

    def __init__(self, root: str | Path, *, mesh: Mesh, keep: int | None = None, engine: str | None = None) -> None:
        if keep is not None and keep < 1:
            raise ValueError(f"keep={keep} would delete the checkpoint just written: give at least 1, or None for all.")
        self.root = Path(root).absolute()
        self.mesh = mesh
        self.keep = keep
        self.engine = engine

    def save(
        self,
        *,
        step: int,
        tensors: Mapping[str, NamedTensor],
        state: Mapping[str, Any],
        rank_state: Mapping[str, Any],
    ) -> CheckpointInfo:
        """Write a checkpoint; it is committed, and on the disk, when this returns.

        Args:
            step: the optimizer step just finished.
            tensors: this rank's pieces by name, as an engine's `state()` returns them.
            state: what JSON can hold, equal on all ranks: data position, schedule, settings.
            rank_state: this rank's own state: numbers, strings, lists, dicts and tensors (`capture_rng`).

        Returns:
            The checkpoint.

        Raises:
            ValueError: `state` is not JSON or differs between ranks, `rank_state` holds something else, or the pieces
                of all ranks do not make up the tensors.
            CheckpointError: a rank could not write. Earlier checkpoints are untouched.
        """
        group, doing = self.mesh.world_group, f"saving step {step}"
        path = on_rank0(doing, lambda: create_directory(self.root, step=step), group=group)
        try:
            records = save_tensors(path, tensors, group=group)
            written = together(doing, lambda: self._write_own(path, state, rank_state), group=group)
            info = on_rank0(doing, lambda: self._commit(path, step, records, written), group=group)
        except (ValueError, CheckpointError):  # raised on all ranks, so none is still writing
            on_rank0(doing, lambda: delete(path), group=group)
            raise
        on_rank0(f"deleting old checkpoints in {self.root}", lambda: self._delete_old(info), group=group)
        return info

    def latest(self) -> CheckpointInfo | None:
        """The newest checkpoint of the folder, or None. Rank 0 looks, and all ranks get its answer."""
        return on_rank0(
            f"looking for checkpoints in {self.root}", lambda: find_latest(self.root), group=self.mesh.world_group
        )

    def load(self, info: CheckpointInfo, tensors: Mapping[str, NamedTensor]) -> Restored:
        """Fill the pieces of `tensors` in place; a mesh of any shape may have saved them.

        First every file is read and compared with its checksum, each file by one rank.

        Args:
            info: a checkpoint, from `latest` or `checkpoint_at`.
            tensors: this rank's pieces by name: an engine's `state()`, or a part of it.

        Returns:
            The JSON state and this rank's own state.

        Raises:
            ValueError: the checkpoint is damaged (the message names the file, and the newest older checkpoint that is
                whole), or a tensor is missing or differs in shape or dtype. No piece has been changed.
            CheckpointError: a rank could not read.
        """
        group, doing = self.mesh.world_group, f"loading step {info.step}"
        if damage := self._damage(info):
            raise ValueError(f"the checkpoint {info.path} is damaged: {'; '.join(damage)}. {self._way_out(info)}")
        load_tensors(info.path, tensors, group=group)
        return agree(doing, lambda: self._read_own(info.path), group=group)

    def _write_own(self, path: Path, state: Mapping[str, Any], rank_state: Mapping[str, Any]) -> _Written:
        """Write this rank's state, then bring all files of this rank to the disk and take their checksums."""
        rank, text = self.mesh.rank, _to_json(state)
        write_synced(path / _rank_file(rank), _to_bytes(rank_state))
        names = [_rank_file(rank), *sorted(file.name for file in path.glob(f"__{rank}_*"))]
        if rank == 0:
            write_synced(path / _STATE, text)
            names += [_STATE, ".metadata"]
        return _Written(files=record_files(path, names), state_sha256=hashlib.sha256(text).hexdigest())

    def _commit(
        self, path: Path, step: int, tensors: Mapping[str, TensorRecord], written: list[_Written]
    ) -> CheckpointInfo:
        for rank, other in enumerate(written):
            if other.state_sha256 != written[0].state_sha256:
                raise ValueError(
                    f"`state` differs between rank 0 and rank {rank}: pass what belongs to one rank as `rank_state`."
                )
        manifest = Manifest(
            step=step,
            dp=self.mesh.layout.dp,
            tp=self.mesh.layout.tp,
            engine=self.engine,
            tensors=tensors,
            files={name: record for rank in written for name, record in rank.files.items()},
            versions={
                "python": platform.python_version(),
                "torch": torch.__version__,
                "tp2d-ckpt": version("tp2d-ckpt"),
                "tp2d-mesh": version("tp2d-mesh"),
            },
        )
        return commit(path, manifest)

    def _delete_old(self, info: CheckpointInfo) -> None:
        sweep(info)
        if self.keep is not None:
            prune(info, keep=self.keep)

    def _damage(self, info: CheckpointInfo) -> list[str]:
        """What is damaged in the checkpoint, the same list on all ranks. Rank i reads files i, i + world, ..."""
        rank, world = self.mesh.rank, self.mesh.layout.world_size

        def check() -> list[str]:
            files = read_manifest(info.path).files
            return find_damage(info.path, {name: files[name] for name in sorted(files)[rank::world]})

        found = together(f"verifying {info.path}", check, group=self.mesh.world_group)
        return [damage for part in found for damage in part]

    def _way_out(self, damaged: CheckpointInfo) -> str:
        """What to do about a damaged checkpoint: it names the newest older one that is whole; a collective."""
        group = self.mesh.world_group
        infos = on_rank0("looking for older checkpoints", lambda: list_checkpoints(damaged.path.parent), group=group)
        for info in reversed([info for info in infos if info.sequence < damaged.sequence]):
            if not self._damage(info):
                return f"The newest older one that is whole is {info.path}: delete the damaged one to resume from it."
        return "No older checkpoint in its folder is whole."

    def _read_own(self, path: Path) -> Restored:
        manifest, layout = read_manifest(path), self.mesh.layout
        state = json.loads((path / _STATE).read_text())
        if (manifest.dp, manifest.tp) != (layout.dp, layout.tp):
            return Restored(state=state, rank_state=None)
        rank_state = torch.load(path / _rank_file(self.mesh.rank), map_location="cpu", weights_only=True)
        return Restored(state=state, rank_state=rank_state)


def _rank_file(rank: int) -> str:
    return f"rank-{rank:05d}.pt"


def _to_json(state: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(dict(state), indent=1).encode()
    except TypeError as error:
        raise ValueError(f"`state` is not JSON: {error}.") from error


def _to_bytes(rank_state: Mapping[str, Any]) -> bytes:
    """`rank_state` as the bytes of a file, read back here, because what cannot be loaded must not be saved."""
    buffer = io.BytesIO()
    torch.save(dict(rank_state), buffer)
    buffer.seek(0)
    try:
        torch.load(buffer, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"`rank_state` holds more than numbers, strings, lists, dicts, tensors: {error}.") from error
    return buffer.getvalue()
