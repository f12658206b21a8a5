"""`tp2d doctor`: what this machine, or the cluster of RAY_ADDRESS, has for a run; a line a check, and what to mend."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tp2d_train.cli import exit_code, parse
from tp2d_train.config import TrainConfig
from tp2d_train.doctor.finding import Finding, Level, findings_of
from tp2d_train.fields import check_fields, option


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """The options of `tp2d doctor`; checks itself."""

    storage_path: str = option(TrainConfig.storage_path, "folder that holds the runs")
    num_workers: int | None = option(None, "local ranks that are tried; default: one a GPU, or 2 on the CPU", least=1)

    def __post_init__(self) -> None:
        check_fields(self)


def main(argv: Sequence[str]) -> int:
    """Looks, prints, and returns the exit code: 0 without a problem, 1 with one, 2 for an option that cannot be."""
    findings: list[Finding] = []

    def look() -> None:
        options = parse(DoctorOptions, argv, command="doctor", description="check this machine, and say what to mend")
        for finding in examine(Path(options.storage_path).expanduser().absolute(), num_workers=options.num_workers):
            print(finding, flush=True)
            findings.append(finding)
        print(summary(findings), flush=True)

    code = exit_code(look)
    return code or int(any(finding.level is Level.PROBLEM for finding in findings))


def examine(storage: Path, *, num_workers: int | None = None) -> Iterator[Finding]:
    """Every check, one after the other; each is over in well under a minute.

    Args:
        storage: the folder of the runs.
        num_workers: local ranks to start; None: as many as GPUs, 2 without one.
    """
    from tp2d_train.doctor.versions import check_versions

    yield from findings_of(check_versions, name="versions")
    yield from findings_of(lambda: _machine(storage, num_workers), name="packages")  # that cannot be imported


def _machine(storage: Path, num_workers: int | None) -> Iterator[Finding]:
    with ExitStack() as stack:
        folder, refused = _scratch(storage, stack)
        if refused is not None:
            yield refused
        for name, check in _checks(folder, num_workers):
            yield from findings_of(check, name=name)


def summary(findings: Sequence[Finding]) -> str:
    """The last line: how many warnings and problems there are."""
    counts = {level: sum(finding.level is level for finding in findings) for level in Level}
    return ", ".join(f"{n} {level}{'' if level is Level.OK or n == 1 else 's'}" for level, n in counts.items())


def _scratch(storage: Path, stack: ExitStack) -> tuple[Path | None, Finding | None]:
    """A scratch folder in the storage, or the finding that there can be none."""
    from tp2d_train.doctor.storage import refused_storage, scratch_folder

    try:
        return stack.enter_context(scratch_folder(storage)), None
    except OSError as error:
        return None, refused_storage(storage, error)


def _checks(folder: Path | None, num_workers: int | None) -> Iterator[tuple[str, Callable[[], Iterator[Finding]]]]:
    # Late: the versions are shown before torch is imported, which a wrong one may prevent.
    import torch

    from tp2d_train.doctor.cluster import check_cluster
    from tp2d_train.doctor.hub import check_hub
    from tp2d_train.doctor.machine import check_devices, check_memory
    from tp2d_train.doctor.ranks import check_ranks
    from tp2d_train.doctor.storage import check_storage
    from tp2d_train.setup.devices import count_gpus

    gpus = count_gpus()
    workers = num_workers or gpus or 2
    device = torch.device("cuda" if gpus >= workers else "cpu")
    yield "devices", lambda: check_devices(workers)
    yield "memory", check_memory
    if folder is not None:
        yield "storage", lambda: check_storage(folder)
    yield "ranks", lambda: check_ranks(workers, device=device, folder=folder)
    if os.environ.get("RAY_ADDRESS"):
        yield "cluster", lambda: check_cluster(folder)
    yield "hub", check_hub
