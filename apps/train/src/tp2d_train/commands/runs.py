"""`tp2d runs`: the runs of a folder, newest first, as a table. It reads small files only, and changes nothing."""

import fcntl
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from tp2d_train.cli import exit_code, parse
from tp2d_train.commands.named import StorageOptions, folders
from tp2d_train.report.metrics import column, read_lines
from tp2d_train.report.table import show_table
from tp2d_train.runs.folder import RunFolder
from tp2d_train.runs.hold import WATCHED_BEATS, Holder, this_machine
from tp2d_train.runs.run import read_summary
from tp2d_train.runs.stored import read_stored

TAIL_BYTES = 1 << 16  # of metrics.jsonl, in which the last losses stand


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table; what is not known is empty.

    Args:
        name: of the run.
        state: `running`, `finished`, `failed`, `stopped`, `no checkpoint` or `damaged`.
        step: how far it is, of how many steps.
        loss: of the last step that was logged.
        eval_loss: of the last evaluation.
        engine: what runs the parallelism.
        mesh: dp x tp.
        model: its name, of a local folder the last part.
        changed: when its files last changed.
    """

    name: str
    state: str
    step: str = ""
    loss: str = ""
    eval_loss: str = ""
    engine: str = ""
    mesh: str = ""
    model: str = ""
    changed: str = ""


def main(argv: Sequence[str]) -> int:
    """Runs one command line of `tp2d runs` and returns the exit code; see `tp2d_train.cli`."""
    return exit_code(lambda: _list(argv))


def _list(argv: Sequence[str]) -> None:
    options = parse(StorageOptions, argv, command="runs", description="List the runs of a folder, newest first.")
    found = sorted(folders(options.storage_path), key=_changed, reverse=True)
    if not found:
        print(f"no runs in {Path(options.storage_path).expanduser().absolute()}; tp2d train starts one")
        return
    heads = [field.name.replace("_", " ") for field in fields(Row)]
    show_table(heads, [astuple(describe(folder)) for folder in found], whole=("name", "state"))


def describe(folder: RunFolder) -> Row:
    """What is known of a run; of one whose files cannot be read, that it is damaged."""
    changed = time.strftime("%Y-%m-%d %H:%M", time.localtime(_changed(folder)))
    try:
        config = read_stored(folder)
        summary = read_summary(folder)
    except ValueError:
        config = None
    if config is None:
        return Row(name=folder.path.name, state="damaged", changed=changed)
    model = Path(config.model_name).name if Path(config.model_name).is_absolute() else config.model_name
    return Row(
        name=folder.path.name,
        state=_state(folder, summary),
        engine=config.engine,
        mesh=f"{config.dp_size}x{config.tp_size}",
        model=model,
        changed=changed,
        **_progress(folder, summary),
    )


def _progress(folder: RunFolder, summary: dict[str, Any]) -> dict[str, str]:
    size = folder.metrics.stat().st_size if folder.metrics.exists() else 0
    lines, _ = read_lines(folder.metrics, start=max(0, size - TAIL_BYTES))
    steps = [summary.get("step", 0), *(line["step"] for line in lines)]
    total = summary.get("total_steps")
    losses = {}
    for name, last in (("loss", "final_loss"), ("eval_loss", "eval_loss")):  # a short run may have no line
        value = next(iter(column(lines, name)[1][-1:]), summary.get(last))
        losses[name] = "" if value is None else f"{value:#.4g}"
    return {"step": f"{max(steps)}/{total}" if total else "", **losses}


def _state(folder: RunFolder, summary: dict[str, Any]) -> str:
    if _is_running(folder):
        return "running"
    if summary.get("finished"):
        return "finished"
    if folder.failure.exists() and folder.failure.stat().st_mtime >= folder.config.stat().st_mtime:
        return "failed"  # every start writes config.yaml anew
    return "stopped" if folder.has_checkpoint() else "no checkpoint"


def _is_running(folder: RunFolder) -> bool:
    """Whether a process of this machine holds the run, or the file of one of another machine is fresh."""
    holder = Holder.read(folder.holder)
    if holder is None:
        return False
    if holder.machine != this_machine():
        return time.time() - folder.holder.stat().st_mtime < 10 * WATCHED_BEATS * holder.every
    if not folder.lock.exists():
        return False
    with folder.lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def _changed(folder: RunFolder) -> float:
    files = (folder.config, folder.metrics, folder.summary)
    return max((file.stat().st_mtime for file in files if file.exists()), default=0.0)
