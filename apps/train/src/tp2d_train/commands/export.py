"""`tp2d export NAME`: a run's newest checkpoint as a Hugging Face folder.

Either engine's checkpoint will do. It needs the run's folder only: no GPU, no process group, no Ray. The new folder
appears whole or not at all.
"""

import dataclasses
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tp2d_train.cli import exit_code, parse
from tp2d_train.commands.named import RunOptions, find_folder
from tp2d_train.config import TrainConfig
from tp2d_train.fields import option
from tp2d_train.runs.folder import RunFolder
from tp2d_train.runs.stored import read_stored

if TYPE_CHECKING:
    import torch


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions(RunOptions):
    """The options of `tp2d export`."""

    output: str | None = option(None, "the new folder; default: export-<step> in the run's folder")
    dtype: str | None = option(None, "of the weights; default: as trained", choices=("fp32", "bf16", "fp16"))


def main(argv: Sequence[str]) -> int:
    """Runs one command line of `tp2d export` and returns the exit code; see `tp2d_train.cli`."""
    return exit_code(lambda: _export(argv))


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
    config = read_stored(run)
    if config is None or not run.has_checkpoint():
        raise ValueError(f"run {run.path.name!r} in {run.path.parent} has no checkpoint: it has not saved yet")
    from tp2d_ckpt import export_weights, find_latest  # late: a wrong name is answered at once
    from tp2d_mesh import PRECISIONS

    wanted = None if dtype is None else PRECISIONS[dtype].compute
    info = find_latest(run.checkpoints)
    if info is None:
        raise ValueError(f"run {run.path} has no checkpoint that is whole")
    target = output or run.path / f"export-{info.step:08d}"
    if target.exists():
        raise ValueError(f"{target} exists: choose another --output")
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=".export-"))
    try:
        _write_model(config, folder, dtype=wanted)
        export_weights(info, folder, dtype=wanted)
        folder.chmod(0o755)  # a temporary folder is for its owner only
        folder.rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # gone where the renaming was reached
    return target


def _export(argv: Sequence[str]) -> None:
    description = "Make a Hugging Face folder of a run's newest checkpoint."
    options = parse(ExportOptions, argv, command="export", description=description)
    run = find_folder(options.name, options.storage_path)
    print(export(run, None if options.output is None else Path(options.output), dtype=options.dtype))


def _write_model(config: TrainConfig, folder: Path, *, dtype: "torch.dtype | None") -> None:
    """The model's configuration and tokenizer, as `save_pretrained` writes them."""
    from tp2d_data import load_tokenizer

    from tp2d_train.setup.model import resolve_model

    model = resolve_model(dataclasses.replace(config, from_scratch=True), need_weights=False)
    if dtype is not None:
        model.config.dtype = dtype
    model.config.save_pretrained(folder)
    load_tokenizer(model.tokenizer_name, trust_remote_code=config.trust_remote_code).save_pretrained(folder)
