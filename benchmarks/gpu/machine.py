"""What the device is, and what it can do at best: measured here, in the same run."""

import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from tp2d_mesh.devices import peak_flops, synchronize

_ASKED = ("name", "power.limit", "driver_version", "memory.total", "clocks.max.sm")
_SECONDS = 20


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A device and its ceilings.

    Args:
        name: as torch reports it.
        facts: what the driver says: power limit, driver, memory; empty where there is none to ask.
        memory_bytes: of the device; None for the CPU.
        product_flops: FLOP/s of a square product of `side`, in the dtype of the run.
        side: rows and columns of that product.
        copy_bytes: bytes/s of a copy on the device, read and written ones counted.
        nominal_flops: FLOP/s of the data sheet in the same dtype; None where it is not known.
    """

    name: str
    facts: dict[str, str]
    memory_bytes: int | None
    product_flops: float
    side: int
    copy_bytes: float
    nominal_flops: float | None


def measured_machine(device: torch.device, *, dtype: torch.dtype, tiny: bool) -> Machine:
    """Asks and measures.

    Args:
        device: what to measure.
        dtype: of the product.
        tiny: small sizes, which show no ceiling.
    """
    gpu = device.type == "cuda"
    side, size = (256, 2**22) if tiny else (8192, 2**31)
    return Machine(
        name=torch.cuda.get_device_name(device) if gpu else "CPU",
        facts=driver_facts(device) if gpu else {},
        memory_bytes=torch.cuda.get_device_properties(device).total_memory if gpu else None,
        product_flops=2 * side**3 / _product_seconds(device, dtype=dtype, side=side),
        side=side,
        copy_bytes=2 * size / _copy_seconds(device, size=size),
        nominal_flops=peak_flops(device, dtype),
    )


def driver_facts(device: torch.device) -> dict[str, str]:
    """What `nvidia-smi` says of the device; empty where it is not there or does not know it. It changes nothing."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
    command = [program, "-i", uuid, f"--query-gpu={','.join(_ASKED)}", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired:
        return {}
    values = [value.strip() for value in answer.stdout.strip().split(",")]
    return dict(zip(_ASKED, values, strict=True)) if answer.returncode == 0 and len(values) == len(_ASKED) else {}


def _product_seconds(device: torch.device, *, dtype: torch.dtype, side: int) -> float:
    """Of random numbers: zeros would be multiplied with less power, and so faster."""
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)

    def product() -> None:
        torch.mm(left, right, out=out)

    return _seconds(product, device=device)


def _copy_seconds(device: torch.device, *, size: int) -> float:
    source = torch.randint(0, 255, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)

    return _seconds(copy, device=device)


def _seconds(work: Callable[[], None], *, device: torch.device, repeats: int = 10, rounds: int = 5) -> float:
    """The median over `rounds` of the mean time of `repeats` calls."""
    for _ in range(3):
        work()
    found = []
    for _ in range(rounds):
        synchronize(device)
        begin = time.perf_counter()
        for _ in range(repeats):
            work()
        synchronize(device)
        found.append((time.perf_counter() - begin) / repeats)
    return sorted(found)[rounds // 2]
