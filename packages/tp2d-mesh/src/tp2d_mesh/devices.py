"""The one place that names a device type: which device, which backend, and what the device can tell.

Everything else takes a `torch.device` and asks here.
"""

import os
import resource
import sys

import torch

KINDS = ("auto", "cpu", "cuda")

# Dense (not sparse) peak of one device in FLOP/s by the name torch reports, from NVIDIA's data sheets. fp32 is the
# rate without TF32. A device or a dtype that is not here has no known peak.
_A100 = {torch.float32: 19.5e12, torch.bfloat16: 312e12, torch.float16: 312e12}
_HOPPER_SXM = {torch.float32: 67e12, torch.bfloat16: 989e12, torch.float16: 989e12}
_PEAK_FLOPS = {
    "NVIDIA A100-SXM4-40GB": _A100,
    "NVIDIA A100-SXM4-80GB": _A100,
    "NVIDIA A100-PCIE-40GB": _A100,
    "NVIDIA A100 80GB PCIe": _A100,
    "NVIDIA H100 80GB HBM3": _HOPPER_SXM,
    "NVIDIA H100 PCIe": {torch.float32: 51e12, torch.bfloat16: 756e12, torch.float16: 756e12},
    "NVIDIA H200": _HOPPER_SXM,
    "NVIDIA L4": {torch.float32: 30.3e12, torch.bfloat16: 121e12, torch.float16: 121e12},
    "NVIDIA L40S": {torch.float32: 91.6e12, torch.bfloat16: 362e12, torch.float16: 362e12},
    "Tesla T4": {torch.float32: 8.1e12, torch.float16: 65e12},
}


def select_device(kind: str = "auto") -> torch.device:
    """The device of this process.

    Args:
        kind: `cpu`, `cuda`, or `auto`: a GPU where torch sees one, else the CPU. Of several GPUs it is the
            one of `LOCAL_RANK` (which torchrun and Ray Train set), 0 without it.

    Raises:
        ValueError: an unknown kind, no GPU for `cuda`, or fewer GPUs than `LOCAL_RANK` needs.
    """
    if kind not in KINDS:
        raise ValueError(f"device={kind!r} is not known: choose one of {', '.join(KINDS)}.")
    count = torch.cuda.device_count() if kind != "cpu" and torch.cuda.is_available() else 0
    if kind == "cuda" and not count:
        raise ValueError("device='cuda', but torch sees no GPU here: use device='cpu' or 'auto'.")
    if not count:
        return torch.device("cpu")
    # A launcher may show each worker its own GPU only, which is then GPU 0 whatever the local rank.
    index = int(os.environ.get("LOCAL_RANK", "0")) if count > 1 else 0
    if index >= count:
        raise ValueError(
            f"LOCAL_RANK={index} needs {index + 1} GPUs on this node and torch sees {count}: "
            f"start at most {count} workers per node, or use device='cpu'."
        )
    return torch.device("cuda", index)


def backend_for(device: torch.device) -> str:
    """The `torch.distributed` backend: gloo on the CPU; with a GPU NCCL, and gloo beside it for CPU tensors
    (asynchronous checkpoints and object collectives need one).
    """
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


def bound_device(device: torch.device) -> torch.device | None:
    """What `init_process_group` takes as its `device_id`: the GPU, which NCCL then need not guess; None for the CPU."""
    return device if device.type == "cuda" else None


def fast_dtypes(device: torch.device) -> frozenset[torch.dtype]:
    """The 16-bit dtypes that a GPU multiplies in hardware; empty for the CPU."""
    if device.type != "cuda":
        return frozenset()
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return frozenset({torch.float16, torch.bfloat16} if bf16 else {torch.float16})


def activate(device: torch.device) -> None:
    """Make `device` the current one of this process, which NCCL and tensors without an index then use."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def synchronize(device: torch.device) -> None:
    """Wait until everything queued on `device` has run; the CPU has no queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class HostCopy:
    """A copy of a small tensor on the CPU, made behind the work that is queued on the tensor's device.

    Args:
        tensor: of any device. Nobody waits for it here; a tensor of the CPU has arrived at once.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._copy = tensor.detach()
        if tensor.device.type == "cuda":
            self._copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._copy.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(tensor.device))

    def has_arrived(self) -> bool:
        """Whether `numbers` would not wait."""
        return self._event is None or self._event.query()

    def numbers(self) -> list[float]:
        """The tensor's values, a list as nested as the tensor; waits for them."""
        if self._event is not None:
            self._event.synchronize()
        return self._copy.tolist()


def peak_memory(device: torch.device) -> int | None:
    """The most bytes in use so far: by tensors on a GPU, by the whole process (resident) on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def total_memory(device: torch.device, *, ranks: int) -> int:
    """Bytes of a rank's device: all of its GPU's; on the CPU its part of this machine's, as if all ranks ran on it.

    Args:
        device: of the rank, on this machine.
        ranks: of the whole run.
    """
    if device.type == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // ranks
    return int(torch.get_device_module(device).get_device_properties(device).total_memory)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """The dense peak of one device in FLOP/s for matrix products in `dtype`; None where it is not known."""
    if device.type != "cuda":
        return None
    return _PEAK_FLOPS.get(torch.cuda.get_device_name(device), {}).get(dtype)


def get_rng_state(device: torch.device) -> torch.Tensor:
    """The state of the device's random generator, a uint8 CPU tensor; `set_rng_state` takes it back."""
    return torch.cuda.get_rng_state(device) if device.type == "cuda" else torch.get_rng_state()


def set_rng_state(state: torch.Tensor, device: torch.device) -> None:
    """Put the device's random generator where `get_rng_state` found it on a device of the same type."""
    if device.type == "cuda":
        torch.cuda.set_rng_state(state, device)
    else:
        torch.set_rng_state(state)


def use_deterministic_kernels() -> None:
    """From now on kernels give the same bits for the same numbers; torch refuses, by name, an operation that cannot.

    Call it before a GPU is used: cuBLAS reads its setting when it starts. Collectives repeat on the same ranks anyway.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # Nothing here reads memory before it is written, so torch need not fill it.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
