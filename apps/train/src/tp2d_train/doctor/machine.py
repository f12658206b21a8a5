"""What this machine has: devices and their backend, memory, shared memory, open files."""

import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from tp2d_mesh.devices import backend_for, select_device

from tp2d_train.doctor.finding import Finding, Level

GIB = 1 << 30
LEAST_MEMORY = 2 * GIB  # a rank of the built-in job takes 0.7
LEAST_SHARED = GIB // 4  # Ray's object store takes half of that, NCCL some
LEAST_FILES = 1024
SHARED, MEMORY = Path("/dev/shm"), Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def check_devices(num_workers: int) -> Iterator[Finding]:
    """The GPUs or the CPU, the backend that would join the ranks, and whether there are enough for the ranks."""
    device = select_device("auto")
    cores, backend = os.cpu_count() or 1, backend_for(device)
    if device.type == "cpu":
        yield Finding(check="devices", text=f"no GPU, {cores} CPU cores; backend {backend}")
        return
    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    named = ", ".join(f"{gpu.name} {gpu.total_memory / GIB:.0f} GiB" for gpu in gpus)
    text = f"{len(gpus)} GPUs ({named}), {cores} CPU cores; backend {backend}"
    if len(gpus) < num_workers:
        mend = "give --device cpu or fewer workers, or use a cluster"
        yield Finding(level=Level.WARNING, check="devices", text=f"{text}, for {num_workers} ranks", mend=mend)
    else:
        yield Finding(check="devices", text=text)


def check_memory() -> Iterator[Finding]:
    """Free memory, as far as the container lets it be used; shared memory; how many files may be open."""
    free = free_memory()
    if free is not None:
        mend = "end other programs, or give the container more"
        yield _amount("memory", free, LEAST_MEMORY, what="free", mend=mend)
    if SHARED.exists():
        size = shutil.disk_usage(SHARED).free
        mend = "start the container with --shm-size=8g"
        yield _amount("shared memory", size, LEAST_SHARED, what=f"free in {SHARED}", mend=mend)
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    level = Level.WARNING if 0 <= files < LEAST_FILES else Level.OK
    yield Finding(
        level=level,
        check="open files",
        text="unlimited" if files == resource.RLIM_INFINITY else f"{files} for a process",
        mend=f"run `ulimit -n {LEAST_FILES * 64}` before the start" if level is Level.WARNING else "",
    )


def free_memory() -> int | None:
    """Bytes that programs can still take here, a container's limit respected; None where the system does not say."""
    if not MEMORY.exists():
        return None
    lines = dict(line.split(":", 1) for line in MEMORY.read_text().splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    limit, used = CGROUP / "memory.max", CGROUP / "memory.current"
    if limit.exists() and used.exists() and (most := limit.read_text().strip()).isdigit():
        free = min(free, int(most) - int(used.read_text()))
    return free


def _amount(check: str, found: int, least: int, *, what: str, mend: str) -> Finding:
    text = f"{found / GIB:.1f} GiB {what}"
    if found >= least:
        return Finding(check=check, text=text)
    return Finding(level=Level.WARNING, check=check, text=f"{text}, less than {least / GIB:.2g} GiB", mend=mend)
