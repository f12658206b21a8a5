"""Checkpoints that are committed as a whole or not at all; any mesh loads what any other mesh saved."""

from importlib.metadata import version

from tp2d_ckpt.checkpointer import Checkpointer, Restored
from tp2d_ckpt.collective import CheckpointError
from tp2d_ckpt.commit import (
    CheckpointInfo,
    FileRecord,
    Manifest,
    TensorRecord,
    checkpoint_at,
    find_latest,
    list_checkpoints,
    read_manifest,
    verify,
)
from tp2d_ckpt.export import export_weights
from tp2d_ckpt.retention import keep_aside, prune
from tp2d_ckpt.state import capture_rng, restore_rng

__version__ = version("tp2d-ckpt")

__all__ = [
    "CheckpointError",
    "CheckpointInfo",
    "Checkpointer",
    "FileRecord",
    "Manifest",
    "Restored",
    "TensorRecord",
    "__version__",
    "capture_rng",
    "checkpoint_at",
    "export_weights",
    "find_latest",
    "keep_aside",
    "list_checkpoints",
    "prune",
    "read_manifest",
    "restore_rng",
    "verify",
]
