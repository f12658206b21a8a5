"""What the machine has, against small and large demands."""

from pathlib import Path

import pytest
from tp2d_train.doctor import machine
from tp2d_train.doctor.finding import Level


def test_a_containers_limit_is_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shows the host's memory taken for the container's, which is killed long before."""
    (tmp_path / "memory.max").write_text(f"{3 << 30}\n")
    (tmp_path / "memory.current").write_text(f"{2 << 30}\n")
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    assert machine.free_memory() == 1 << 30
    memory = next(iter(machine.check_memory()))
    assert memory.level is Level.WARNING
    assert memory.text == "1.0 GiB free, less than 2 GiB"


def test_no_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("1\n")
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    free = machine.free_memory()
    assert free is not None and free > 1 << 20


def test_few_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        (files,) = (finding for finding in machine.check_memory() if finding.check == "open files")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert files.level is Level.WARNING
    assert "ulimit -n" in files.mend
