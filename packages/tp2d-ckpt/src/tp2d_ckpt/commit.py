"""The protocol that makes a directory a checkpoint: files, then a manifest of their checksums, and last a mark.

Each save goes into a fresh directory `step-<step>-<nonce>` and never into an existing one, so files of two saves cannot
mix. The directory becomes a checkpoint in one atomic step: the rename of `COMPLETE` into place. That mark names the
manifest by its SHA-256. A directory without the mark is not a checkpoint. So a process killed at any instant leaves
whole checkpoints and unfinished saves, and the two cannot be confused.

Files are checked by CRC-32. It finds every flipped bit and every burst of up to 32 bits, and misses other damage with
a probability of 2^-32. It is several times as fast as BLAKE2b (`benchmarks/save_cost.py`). It guards against
accidents: anyone who can write to the folder can forge a checkpoint.

Nothing here needs torch or a process group.
"""

import hashlib
import json
import os
import re
import secrets
import warnings
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tp2d_ckpt.files import sync_directory, sync_file, write_atomically, write_synced

FORMAT = 1
MANIFEST = "manifest.json"
MARK = "COMPLETE"
KEPT = "-kept"
_DIRECTORY = re.compile(rf"step-\d{{8,}}-[0-9a-f]{{8}}({KEPT})?")
_BLOCK = 8 << 20


@dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """A committed checkpoint.

    Args:
        path: its directory.
        step: the optimizer step it was taken after.
        sequence: its number in the order of commits to its folder, from 1; the highest is the newest. Clocks and steps
            do not decide this, so a run that went back to an older step still finds its own last save.
    """

    path: Path
    step: int
    sequence: int

    @property
    def is_kept(self) -> bool:
        """Whether this is the second name of a checkpoint, which no later save deletes; see `retention.keep_aside`."""
        return self.path.name.endswith(KEPT)


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """A file of a checkpoint: its size in bytes and its CRC-32 as eight hex digits."""

    size: int
    crc32: str


@dataclass(frozen=True, kw_only=True)
class TensorRecord:
    """A saved tensor: its global shape and its dtype (`"float32"`)."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a checkpoint holds; the content of `manifest.json`.

    Args:
        step: the optimizer step.
        dp: the data-parallel size of the mesh that saved it.
        tp: the tensor-parallel size of the mesh that saved it.
        engine: the name of the engine that trained, or None where the caller gave none.
        tensors: every tensor by its full name.
        files: every file but the manifest and the mark, by its name within the directory.
        versions: the versions of the libraries that wrote it.
        format: the version of this layout.

    Raises:
        ValueError: this version does not read `format`.
    """

    step: int
    dp: int
    tp: int
    engine: str | None
    tensors: Mapping[str, TensorRecord]
    files: Mapping[str, FileRecord]
    versions: Mapping[str, str]
    format: int = FORMAT

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise ValueError(f"the checkpoint's format is {self.format} and this version of tp2d-ckpt reads {FORMAT}.")


def create_directory(root: Path, *, step: int) -> Path:
    """Make a fresh, empty directory for a save of `step` under `root`; `root` is made where it is missing."""
    path = root / f"step-{step:08d}-{secrets.token_hex(4)}"
    root.mkdir(parents=True, exist_ok=True)
    path.mkdir()
    sync_directory(root)
    return path


def record_files(path: Path, names: Iterable[str]) -> dict[str, FileRecord]:
    """Bring the files `names` in directory `path` to the disk and take their sizes and checksums.

    Each rank calls this for the files it wrote itself: its own view of them is up to date on every file system, and no
    file is read twice.
    """
    records = {}
    for name in names:
        sync_file(path / name)
        records[name] = _record(path / name)
    sync_directory(path)
    return records


def commit(path: Path, manifest: Manifest) -> CheckpointInfo:
    """Make `path` a checkpoint: write the manifest, then the mark. One process calls it, after all files are recorded.

    Raises:
        FileNotFoundError: a file of the manifest cannot be seen here, or has another size: the ranks share no disk.
    """
    for name, record in manifest.files.items():
        if not (path / name).exists() or (path / name).stat().st_size != record.size:
            raise FileNotFoundError(
                f"{path / name} ({record.size} bytes) was written by another rank and cannot be seen from here: "
                f"{path.parent} must be storage that all nodes share."
            )
    text = json.dumps(asdict(manifest), indent=1).encode()
    write_synced(path / MANIFEST, text)
    sequence = 1 + max((info.sequence for info in list_checkpoints(path.parent)), default=0)
    mark = {"format": FORMAT, "step": manifest.step, "sequence": sequence, "manifest_sha256": _sha256(text)}
    write_atomically(path / MARK, json.dumps(mark).encode())
    return CheckpointInfo(path=path, step=manifest.step, sequence=sequence)


def checkpoint_at(path: str | os.PathLike[str]) -> CheckpointInfo:
    """The checkpoint in directory `path`, by its mark and manifest; `verify` reads the other files too.

    Raises:
        ValueError: `path` is not a checkpoint; the message says what is missing or damaged.
    """
    return _open(Path(path))[0]


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """The manifest of the checkpoint in directory `path`. Raises ValueError as `checkpoint_at`."""
    fields: dict[str, Any] = json.loads(_open(Path(path))[1])
    tensors = {k: TensorRecord(shape=tuple(v["shape"]), dtype=v["dtype"]) for k, v in fields.pop("tensors").items()}
    files = {name: FileRecord(**record) for name, record in fields.pop("files").items()}
    return Manifest(tensors=tensors, files=files, **fields)


def list_checkpoints(root: str | os.PathLike[str]) -> list[CheckpointInfo]:
    """The checkpoints in folder `root`, oldest first; empty where there is none, or no folder.

    A directory without a mark is a save that did not finish, and is skipped. A directory whose mark does not fit its
    manifest is damaged, and is skipped with a warning that says why.
    """
    found = []
    for path in save_directories(Path(root)):
        if not (path / MARK).exists():
            continue
        try:
            found.append(checkpoint_at(path))
        except ValueError as error:
            warnings.warn(f"skipped: {error}", stacklevel=2)
    return sorted(found, key=lambda info: (info.sequence, info.step))


def find_latest(root: str | os.PathLike[str]) -> CheckpointInfo | None:
    """The newest checkpoint in folder `root`, or None."""
    return next(reversed(list_checkpoints(root)), None)


def verify(path: str | os.PathLike[str]) -> Manifest:
    """Read every file of the checkpoint in directory `path` and compare its size and checksum with the manifest.

    Returns:
        The manifest.

    Raises:
        ValueError: `path` is not a checkpoint, or files are damaged or missing; the message names each.
    """
    manifest = read_manifest(path)
    if damage := find_damage(Path(path), manifest.files):
        raise ValueError(f"the checkpoint {path} is damaged: {'; '.join(damage)}.")
    return manifest


def find_damage(path: Path, files: Mapping[str, FileRecord]) -> list[str]:
    """A phrase on each damaged file of `files` in directory `path`: its name, what is there, what should be."""
    found = []
    for name, expected in files.items():
        file = path / name
        if not file.exists():
            found.append(f"{name} is missing ({expected.size} bytes expected)")
        elif (size := file.stat().st_size) != expected.size:
            found.append(f"{name} has {size} bytes, {expected.size} expected")
        elif (actual := _record(file)) != expected:
            found.append(f"{name} has checksum {actual.crc32}, {expected.crc32} expected")
    return found


def save_directories(root: Path) -> list[Path]:
    """The directories in `root` that a save made, finished or not. Links and other names are left out."""
    if not root.is_dir():
        return []
    return sorted(p for p in root.iterdir() if _DIRECTORY.fullmatch(p.name) and p.is_dir() and not p.is_symlink())


def _open(path: Path) -> tuple[CheckpointInfo, bytes]:
    """The checkpoint at `path` and the bytes of its manifest, which have the SHA-256 that the mark names."""
    try:
        mark = json.loads((path / MARK).read_bytes())
        info = CheckpointInfo(path=path, step=int(mark["step"]), sequence=int(mark["sequence"]))
        expected = mark["manifest_sha256"]
    except FileNotFoundError:
        raise ValueError(f"{path} is not a checkpoint: it has no {MARK} mark, so its save never finished.") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is not a checkpoint: its {MARK} mark is not readable.") from None
    if not (path / MANIFEST).exists():
        raise ValueError(f"{path} is not a checkpoint: {MANIFEST} is missing.")
    text = (path / MANIFEST).read_bytes()
    if (actual := _sha256(text)) != expected:
        raise ValueError(
            f"{path} is not a checkpoint: its {MARK} mark belongs to the manifest {expected[:12]} "
            f"and {MANIFEST} is {actual[:12]}."
        )
    return info, text


def _record(path: Path) -> FileRecord:
    crc, size = 0, 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            crc, size = zlib.crc32(block, crc), size + len(block)
    return FileRecord(size=size, crc32=f"{crc:08x}")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
