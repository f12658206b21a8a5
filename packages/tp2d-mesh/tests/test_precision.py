"""The table of precisions, and which of them a device gets."""

import pytest
import torch
from tp2d_mesh import PRECISIONS, resolve_precision

CPU = torch.device("cpu")
GPU = torch.device("cuda", 0)


def test_the_table_is_keyed_by_name():
    assert list(PRECISIONS) == ["fp64", "fp32", "bf16", "bf16-pure", "fp16"]
    assert all(precision.name == name for name, precision in PRECISIONS.items())


def test_mixed_precisions_keep_masters_and_sums_in_fp32():
    for name, compute in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        found = PRECISIONS[name]
        assert (found.master, found.compute, found.reduce) == (torch.float32, compute, torch.float32)
    assert [name for name, precision in PRECISIONS.items() if precision.loss_scaling] == ["fp16"]


def test_precisions_on_the_cpu():
    assert resolve_precision("auto", CPU).name == "fp32"
    for name in ("fp64", "fp32", "bf16", "bf16-pure"):
        assert resolve_precision(name, CPU).name == name
    with pytest.raises(ValueError, match=r"precision='fp16' needs a GPU and the device is the CPU: choose 'fp32' or"):
        resolve_precision("fp16", CPU)
    known = "auto, fp64, fp32, bf16, bf16-pure, fp16"
    with pytest.raises(ValueError, match=f"precision='fp8' is not known: choose one of {known}"):
        resolve_precision("fp8", CPU)


@pytest.mark.parametrize(("able", "expected"), [(True, "bf16"), (False, "fp32")])
def test_auto_precision_on_a_gpu_is_what_it_computes_in(monkeypatch, able, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: able or including_emulation)
    assert resolve_precision("auto", GPU).name == expected
    assert resolve_precision("fp16", GPU).name == "fp16"
