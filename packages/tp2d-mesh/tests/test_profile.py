"""Names of kernels as GPUs and Inductor write them, traces written by hand, and a real trace of this CPU."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function
from tp2d_mesh.profile import CLASSES, STEP, kernel_class, short_name, step_profile

MATRIX, ATTENTION, OTHER, OPTIMIZER, COPIES, COMMUNICATION = CLASSES


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nvjet_sm90_tst_128x256_64x4_1x2_h_bz_coopA_NNT", MATRIX),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1_execute_segment_k", MATRIX),
        ("void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm_bf16_128x256_32x3_nn_align8>(Params)", MATRIX),
        ("void cublasLt::splitKreduce_kernel<32, 16, int, float, __nv_bfloat16>(...)", MATRIX),
        ("triton_tem_fused_mm_t_3", MATRIX),
        ("aten::addmm", MATRIX),
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128, 64, cutlass::bfloat16_t>>", ATTENTION),
        ("void cutlass::device_kernel<flash::enable_sm90<flash::FlashAttnFwdSm90<...>>>(...)", ATTENTION),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_7_64x128x128_4x1x1_kernel0_0", ATTENTION),
        ("fmha_cutlassF_bf16_aligned_64x128_rf_sm80(PyTorchMemEffAttention::AttentionKernel<...>::Params)", ATTENTION),
        ("triton_tem_fused_flex_attention_backward_4", ATTENTION),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", ATTENTION),
        ("tp2d::packed_attention", ATTENTION),
        ("triton_poi_fused_mm_mul_silu_7", OTHER),
        ("triton_red_fused__scaled_dot_product_flash_attention_mean_pow_0", OTHER),
        ("void (anonymous namespace)::cunn_SoftMaxForward<8, float, float, float>(...)", OTHER),
        ("void at::native::vectorized_elementwise_kernel<4, at::native::silu_kernel(...)>(...)", OTHER),
        ("void at::native::multi_tensor_apply_kernel<ListMetadata<4>, FusedAdamMathFunctor<float, 4>>", OPTIMIZER),
        ("void at::native::multi_tensor_apply_kernel<ListMetadata<1>, at::native::LpNormFunctor<float>>", OPTIMIZER),
        ("aten::_fused_adamw_", OPTIMIZER),
        ("void at::native::multi_tensor_apply_kernel<TensorListMetadata<2>, at::native::CopyFunctor<float>>", COPIES),
        ("void at::native::(anonymous namespace)::CatArrayBatchedCopy<...>(...)", COPIES),
        ("void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda(...)>(...)", COPIES),
        ("Memcpy DtoD (Device -> Device)", COPIES),
        ("Memset (Device)", COPIES),
        ("ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)", COMMUNICATION),
        ("gloo:all_reduce", COMMUNICATION),
    ],
)  # fmt: skip
def test_a_kernel_is_known_by_its_name(name: str, expected: str) -> None:
    assert kernel_class(name) == expected


def test_a_name_is_cut_at_its_arguments() -> None:
    assert (
        short_name("void pytorch_flash::flash_fwd_kernel<Traits<128>, true>(Params)")
        == "pytorch_flash::flash_fwd_kernel"
    )


def event(name: str, cat: str, start: float, duration: float, *, tid: int = 1) -> dict[str, Any]:
    """One complete event of a trace, times in microseconds."""
    return {"ph": "X", "name": name, "cat": cat, "ts": start, "dur": duration, "tid": tid}


GPU = [
    event(STEP, "user_annotation", 0, 100),
    event(STEP, "user_annotation", 200, 100),
    event(STEP, "gpu_user_annotation", 10, 500),  # the same range as the device saw it: not a kernel, not a step
    event("aten::mm", "cpu_op", 5, 10),  # it launches a kernel, which is what counts
    event("cudaStreamSynchronize", "cuda_runtime", 20, 5),
    event("aten::_local_scalar_dense", "cpu_op", 19, 7),
    event("cudaStreamWaitEvent", "cuda_runtime", 30, 1),  # a stream waits here, not the host
    event("cudaDeviceSynchronize", "cuda_runtime", 400, 100),  # after the steps: the profiler's own
    event("nvjet_tst", "kernel", 50, 100, tid=7),
    event("ncclDevKernel_AllGather", "kernel", 100, 100, tid=20),  # half of it beside the product
    event("void pytorch_flash::flash_fwd_kernel<1>(P)", "kernel", 300, 50, tid=7),
    event("Memcpy HtoD", "gpu_memcpy", 380, 20, tid=7),
    {"ph": "M", "name": "thread_name"},
]


def test_kernels_are_counted_per_step_and_waits_only_within_steps() -> None:
    found = step_profile(GPU)
    assert found.kernels == 2
    assert (found.waits, found.reads) == (0.5, 0.5)
    assert found.seconds[MATRIX] == pytest.approx(50e-6)
    assert found.seconds[COMMUNICATION] == pytest.approx(25e-6), "half of it is beside the product"
    assert found.seconds[ATTENTION] == pytest.approx(25e-6)
    assert found.seconds[COPIES] == pytest.approx(10e-6)
    assert found.attention == ("pytorch_flash::flash_fwd_kernel",)


def test_time_beside_other_work_counts_once_as_busy() -> None:
    found = step_profile(GPU)
    assert found.busy_seconds == pytest.approx((150 + 50 + 20) / 2 * 1e-6) == sum(found.seconds.values())
    assert found.span_seconds == pytest.approx(350 / 2 * 1e-6)


def test_without_kernels_operators_count_with_their_own_time() -> None:
    events = [
        event(STEP, "user_annotation", 0, 100),
        event("aten::linear", "cpu_op", 0, 40),
        event("aten::t", "cpu_op", 1, 4),
        event("aten::mm", "cpu_op", 10, 30),
        event("aten::mm", "cpu_op", 15, 35, tid=2),  # another thread's is not inside the first's, and 25 us beside it
        event("aten::mm", "cpu_op", 150, 30),  # after the step
    ]
    found = step_profile(events)
    assert found.kernels == 4
    assert found.seconds[MATRIX] == pytest.approx(46e-6)  # all but the transposition, and 10 after the linear
    assert found.seconds[OTHER] == pytest.approx(4e-6)


def test_a_trace_without_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="no range named"):
        step_profile(GPU[3:])


def test_a_real_trace_of_the_cpu(tmp_path: Path) -> None:
    weight = torch.randn(64, 64, requires_grad=True)
    optimizer = torch.optim.AdamW([weight], fused=True)
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        for _ in range(2):
            with record_function(STEP):
                q = (weight @ weight).view(1, 1, 64, 64)
                torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True).sum().backward()
                optimizer.step()
                float(weight.detach().sum())
    recorded.export_chrome_trace(str(tmp_path / "trace.json"))
    found = step_profile(json.loads((tmp_path / "trace.json").read_text())["traceEvents"])
    assert found.reads == 2  # one is of the fused AdamW, whose count of steps is on the CPU
    assert all(found.seconds[name] > 0 for name in (MATRIX, ATTENTION, OPTIMIZER, OTHER))
    assert found.seconds[COMMUNICATION] == 0
    assert any("flash_attention" in name for name in found.attention)
    assert found.busy_seconds <= found.span_seconds
