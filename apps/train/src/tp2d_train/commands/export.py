"""`python -m tp2d_train.commands.export --name RUN`: a run's newest checkpoint as a Hugging Face folder.

Either engine's checkpoint will do. It needs the run's folder only: no GPU, no process group, no Ray. The new folder
appears whole or not at all.
"""

import argparse
import dataclasses
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tp2d_train.cli import exit_code
from tp2d_train.config import TrainConfig
from tp2d_train.folder import RunFolder
from tp2d_train.options import read_yaml

if TYPE_CHECKING:
    import torch


def main(argv: Sequence[str] | None = None) -> int:
    """Exports, and returns the exit code; a user's mistake is one line on stderr."""
    parser = argparse.ArgumentParser(prog="tp2d_train.commands.export", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--name", required=True, help="name of the run")
    parser.add_argument("--storage-path", default=TrainConfig.storage_path, help="folder that holds the runs")
    parser.add_argument("--output", help="the new folder; default: export-<step> in the run's folder")
    parser.add_argument("--dtype", help="of the weights: fp32, bf16, fp16; default: as trained")
    options = parser.parse_args(argv)
    output = None if options.output is None else Path(options.output)
    run = RunFolder(Path(options.storage_path) / options.name)
    return exit_code(lambda: print(export(run, output, dtype=options.dtype)))


def export(run: RunFolder, output: Path | None = None, *, dtype: str | None = None) -> Path:
    """Writes weights, configuration and tokenizer of a run's newest checkpoint.

    Args:
        run: the run's folder.
        output: the new folder; None: `export-<step>` in the run's.
        dtype: the name of a precision, whose compute dtype is taken; None keeps what the checkpoint has.

    Returns:
        The folder, ready for `from_pretrained`.

    Raises:
        ValueError: no run, no checkpoint, a damaged one, or a folder that exists.
    """
    if not run.config.exists():
        raise ValueError(f"{run.path} is no run: it has no {run.config.name}")
    from tp2d_ckpt import export_weights, find_latest  # late: a wrong name is answered at once

    wanted = None if dtype is None else _dtype(dtype)
    info = find_latest(run.checkpoints)
    if info is None:
        raise ValueError(f"run {run.path} has no checkpoint to export")
    target = output or run.path / f"export-{info.step:08d}"
    if target.exists():
        raise ValueError(f"{target} exists: choose another --output")
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=".export-"))
    try:
        _write_model(TrainConfig(**read_yaml(run.config)), folder, dtype=wanted)
        export_weights(info, folder, dtype=wanted)
        folder.chmod(0o755)  # a temporary folder is for its owner only
        folder.rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # gone where the renaming was reached
    return target


def _dtype(name: str) -> "torch.dtype":
    from tp2d_mesh import PRECISIONS

    if name not in PRECISIONS:
        raise ValueError(f"unknown --dtype {name!r}: choose {', '.join(PRECISIONS)}")
    return PRECISIONS[name].compute


def _write_model(config: TrainConfig, folder: Path, *, dtype: "torch.dtype | None") -> None:
    """The model's configuration and tokenizer, as `save_pretrained` writes them."""
    from tp2d_data import load_tokenizer

    from tp2d_train.setup.model import resolve_model

    model = resolve_model(dataclasses.replace(config, from_scratch=True), need_weights=False)
    if dtype is not None:
        model.config.dtype = dtype
    model.config.save_pretrained(folder)
    load_tokenizer(model.tokenizer_name, trust_remote_code=config.trust_remote_code).save_pretrained(folder)


if __name__ == "__main__":
    sys.exit(main())
