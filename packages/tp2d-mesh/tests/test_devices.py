import os

import pytest
import torch
from tp2d_mesh import devices
from tp2d_mesh.testing import run_on_mesh

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def gpus(monkeypatch):
    """Lets torch claim a number of GPUs, without touching any."""

    def claim(count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.delenv("LOCAL_RANK", raising=False)

    return claim


def test_without_a_gpu_auto_is_the_cpu_and_cuda_is_refused(gpus):
    gpus(0)
    assert devices.select_device() == devices.select_device("cpu") == CPU
    with pytest.raises(ValueError, match=r"device='cuda', but torch sees no GPU here: use device='cpu' or 'auto'\."):
        devices.select_device("cuda")


def test_of_several_gpus_it_is_the_one_of_the_local_rank(gpus, monkeypatch):
    gpus(4)
    assert devices.select_device() == torch.device("cuda", 0)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert devices.select_device() == devices.select_device("cuda") == torch.device("cuda", 3)
    assert devices.select_device("cpu") == CPU


def test_an_only_gpu_is_taken_whatever_the_local_rank(gpus, monkeypatch):
    """Launchers that show each worker its own GPU."""
    gpus(1)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert devices.select_device() == torch.device("cuda", 0)


def test_more_ranks_than_gpus_are_refused(gpus, monkeypatch):
    gpus(2)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="LOCAL_RANK=2 needs 3 GPUs on this node and torch sees 2: start at most 2"):
        devices.select_device()


def test_an_unknown_device_is_refused_with_those_known():
    with pytest.raises(ValueError, match=r"device='tpu' is not known: choose one of auto, cpu, cuda\."):
        devices.select_device("tpu")


def test_backends():
    assert devices.backend_for(CPU) == "gloo"
    assert devices.backend_for(torch.device("cuda", 1)) == "cpu:gloo,cuda:nccl"


def test_the_cpu_claims_no_fast_dtype():
    assert devices.fast_dtypes(CPU) == frozenset()


@pytest.mark.parametrize("able", [True, False])
def test_a_gpu_claims_bf16_where_it_computes_in_it(monkeypatch, able):
    """Shows bf16 chosen on a GPU that only emulates it, which is slower than fp32."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: able or including_emulation)
    expected = {torch.float16, torch.bfloat16} if able else {torch.float16}
    assert devices.fast_dtypes(torch.device("cuda", 0)) == expected


def peaks_around_a_block(mesh):
    """The peak before, with and after 64 MiB, in a process that has never held more than it does now."""
    before = devices.peak_memory(mesh.device)
    block = torch.ones(64 * 2**20 // 4)
    during = devices.peak_memory(mesh.device)
    del block
    return before, during, devices.peak_memory(mesh.device)


def test_a_host_copy_on_the_cpu_is_there_at_once():
    copy = devices.HostCopy(torch.tensor([1.5, 2.0]))
    assert copy.has_arrived() and copy.numbers() == [1.5, 2.0]


def test_memory_of_the_cpu_is_that_of_the_process():
    [(before, during, after)] = run_on_mesh(peaks_around_a_block, fresh=True)
    assert during - before > 48 * 2**20
    assert after >= during


def test_the_peak_of_a_cpu_is_not_known():
    assert devices.peak_flops(CPU, torch.float32) is None


def test_the_peak_of_a_gpu_is_in_the_table_or_not_known(monkeypatch):
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert devices.peak_flops(gpu, torch.bfloat16) == 989e12
    assert devices.peak_flops(gpu, torch.float64) is None
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200 MIG 1g.18gb")
    assert devices.peak_flops(gpu, torch.bfloat16) is None


def rng_round_trip(device):
    state = devices.get_rng_state(device)
    first = torch.rand(4, device=device)
    devices.set_rng_state(state, device)
    return first, torch.rand(4, device=device)


def test_the_random_generator_goes_back():
    first, again = rng_round_trip(CPU)
    assert torch.equal(first, again)
    devices.synchronize(CPU)
    devices.activate(CPU)


@needs_gpu
def test_on_a_gpu():
    device = devices.select_device("cuda")
    devices.activate(device)
    assert torch.cuda.current_device() == device.index
    before = torch.cuda.memory_allocated(device)
    block = torch.ones(2**20, device=device)
    devices.synchronize(device)
    assert devices.peak_memory(device) >= before + block.nbytes
    first, again = rng_round_trip(device)
    assert torch.equal(first, again)
    assert devices.get_rng_state(device).device == CPU


def deterministic(mesh):
    devices.use_deterministic_kernels()
    with pytest.raises(RuntimeError, match="put_ does not have a deterministic implementation"):
        torch.zeros(4).put_(torch.tensor([0]), torch.tensor([1.0]))
    return os.environ["CUBLAS_WORKSPACE_CONFIG"]


def test_an_operation_that_cannot_repeat_is_refused_by_name():
    assert run_on_mesh(deterministic, fresh=True) == [":4096:8"]
