"""`python -m tp2d_train.export --name RUN`: a run's newest checkpoint as a Hugging Face folder, of either engine.

It needs the run's folder only: no GPU, no process group, no Ray. The folder appears whole or not at all.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tp2d_train.config import TrainConfig
from tp2d_train.options import read_yaml
from tp2d_train.runs import CHECKPOINTS_FOLDER, CONFIG_FILE

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def main(argv: Sequence[str] | None = None) -> int:
    """Exports, and returns the exit code; a user's mistake is one line on stderr."""
    parser = argparse.ArgumentParser(prog="tp2d_train.export", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--name", required=True, help="name of the run")
    parser.add_argument("--storage-path", default=TrainConfig.storage_path, help="folder that holds the runs")
    parser.add_argument("--output", help="the new folder; default: export-<step> in the run's folder")
    parser.add_argument("--dtype", choices=sorted(DTYPES), help="of the weights; default: as trained")
    options = parser.parse_args(argv)
    try:
        output = None if options.output is None else Path(options.output)
        print(export(Path(options.storage_path) / options.name, output, dtype=options.dtype))
    except ValueError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def export(run: Path, output: Path | None = None, *, dtype: str | None = None) -> Path:
    """Writes weights, configuration and tokenizer of a run's newest checkpoint.

    Args:
        run: the run's folder.
        output: the new folder; None: `export-<step>` in the run's.
        dtype: `fp32`, `bf16` or `fp16`; None keeps what the checkpoint has.

    Returns:
        The folder, ready for `from_pretrained`.

    Raises:
        ValueError: no run, no checkpoint, a damaged one, or a folder that exists.
    """
    if not (run / CONFIG_FILE).exists():
        raise ValueError(f"{run} is no run: it has no {CONFIG_FILE}")
    from tp2d_ckpt import export_weights, find_latest  # late: a wrong name is answered at once

    info = find_latest(run / CHECKPOINTS_FOLDER)
    if info is None:
        raise ValueError(f"run {run} has no checkpoint to export")
    target = output or run / f"export-{info.step:08d}"
    if target.exists():
        raise ValueError(f"{target} exists: choose another --output")
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=".export-"))
    try:
        _write_model(TrainConfig(**read_yaml(run / CONFIG_FILE)), folder, dtype=dtype)
        export_weights(info, folder, dtype=_dtype(dtype))
        folder.chmod(0o755)  # a temporary folder is for its owner only
        folder.rename(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # gone where the renaming was reached
    return target


def _dtype(name: str | None):  # type: ignore[no-untyped-def]  # torch is imported here and not before
    import torch

    return None if name is None else getattr(torch, DTYPES[name])


def _write_model(config: TrainConfig, folder: Path, *, dtype: str | None) -> None:
    """The model's configuration and tokenizer, as `save_pretrained` writes them."""
    from tp2d_data import load_tokenizer

    from tp2d_train.models import resolve_model

    model = resolve_model(
        config.model_name, from_scratch=True, trust_remote_code=config.trust_remote_code, need_weights=False
    )
    if dtype is not None:
        model.config.dtype = DTYPES[dtype]
    model.config.save_pretrained(folder)
    name = config.tokenizer_name or model.tokenizer_name
    load_tokenizer(name, trust_remote_code=config.trust_remote_code).save_pretrained(folder)


if __name__ == "__main__":
    sys.exit(main())
