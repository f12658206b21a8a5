"""Float8 by emulation: casts as on a GPU, products in fp32. What is cast, how far results move, what is refused.

The bounds. e4m3 has 3 bits after the leading one, so a cast moves a value by at most U = 2^-4 of its size; bf16, with 7
bits, by 2^-8. Values that small that they lose their leading bit are cast in steps of 2^-9, half of which is at most
2^-10 / 224 of the row's largest value, because a scale, a power of two, puts that at 224 or more.

A single product is bounded by that alone. For a whole model take the errors of a cast to be independent and spread
evenly over +-U, so U / sqrt(3) in the mean square. A product has two factors, and errors of products in turn add in
squares. What bf16 rounds beside, in every operation, is measured: it is the distance of a run without float8.
"""

import math
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from tp2d_fsdp2 import check, float8
from tp2d_fsdp2.engine import FSDP2Engine
from tp2d_fsdp2.testing import run_engine
from tp2d_mesh import EngineSpec, Layout, Mesh, NamedTensor, build_skeleton, plan_model
from tp2d_mesh.testing import run_on_mesh
from tp2d_mesh.testing.parity import TINY, EngineRun, random_batches, tiny_model

U, U_BF16 = 2.0**-4, 2.0**-8
HIDDEN = TINY["hidden_size"]
SIZES = {"intermediate_size": 64, "initializer_range": HIDDEN**-0.5}
SPEC = EngineSpec(precision="bf16", float8=True, learning_rate=1e-2, max_grad_norm=None)
BATCHES = random_batches(steps=1, rows=4, seq_length=12, vocab_size=TINY["vocab_size"]) * 6  # learnt by heart
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
ONE = Layout(dp=1, tp=1)

# The products in turn on the longest way through a layer are v, o, gate (or up) and down: of two layers forward and
# back, and that of the weight's own gradient.
PRODUCTS = 2 * 2 * 4 + 1


# The relative error, in the mean square, of a gradient whose every product casts both of its factors.
MODEL_BOUND = math.sqrt(2 * PRODUCTS / 3) * U


def config_of(family: str = "qwen3", **changes: Any) -> Any:
    return tiny_model(family, dtype=torch.float32, **{**SIZES, **changes}).config


@pytest.fixture
def torchao() -> None:
    pytest.importorskip("torchao", reason="torchao is not installed: pip install torchao")


@pytest.fixture
def emulated(torchao: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(float8, "_EMULATED", True)


def product_bound(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """How far `a @ b` may be off, element by element, where rows of `a` and columns of `b` are cast."""
    a, b = a.abs(), b.abs()
    error_a = U * a + 2.0**-10 / 224 * a.amax(1, keepdim=True)
    error_b = U * b + 2.0**-10 / 224 * b.amax(0, keepdim=True)
    result = error_a @ b + a @ error_b + error_a @ error_b
    return result + U_BF16 * (a @ b + result)  # the result is rounded to bf16


def cast(x: torch.Tensor, *, dim: int) -> torch.Tensor:
    """`x` as e4m3 holds it, with a scale per row (`dim=1`) or column (`dim=0`): the largest power of two that fits."""
    scale = torch.exp2(torch.floor(torch.log2(448 / x.abs().amax(dim, keepdim=True))))
    return (x * scale).to(torch.float8_e4m3fn).double() / scale


def test_three_products_of_a_layer_are_cast_within_e4m3s_error(emulated: None) -> None:
    """Shows a product left in bf16, one scale for a whole matrix (rows differ by 2^24 here), or another float8."""
    model = tiny_model("qwen3", dtype=torch.bfloat16, **SIZES)
    names = {name: parameter.shape for name, parameter in model.named_parameters()}
    float8.convert(model, plan=plan_model(model, tp=1))
    assert {name: parameter.shape for name, parameter in model.named_parameters()} == names
    layer = model.model.layers[0].mlp.up_proj
    generator = torch.Generator().manual_seed(0)
    rows = torch.exp2(torch.linspace(-12, 12, 24))[:, None]
    x = (rows * torch.randn(24, HIDDEN, generator=generator)).bfloat16().requires_grad_()
    gradient = (rows.flip(0) * torch.randn(24, 64, generator=generator)).bfloat16()
    y = layer(x)
    y.backward(gradient)
    wide_x, wide_w, wide_g = x.detach().double(), layer.weight.detach().double(), gradient.double()
    for found, a, b in ((y, wide_x, wide_w.T), (x.grad, wide_g, wide_w), (layer.weight.grad, wide_g.T, wide_x)):
        error = (found.detach().double() - a @ b).abs()
        assert (error <= product_bound(a, b)).all()
        expected, size = cast(a, dim=1) @ cast(b, dim=0), cast(a, dim=1).abs() @ cast(b, dim=0).abs()
        # The sum of 64 terms in fp32 is off by at most 64 x 2^-24 of their sizes, and is rounded to bf16.
        off = (found.detach().double() - expected).abs()
        assert (off <= U_BF16 * expected.abs() + 2.0**-17 * size).all()
        assert (error > U_BF16 * (a.abs() @ b.abs())).any()  # more than bf16 would be off


def test_only_linear_layers_inside_decoder_layers_are_swapped(emulated: None) -> None:
    from torchao.float8.float8_linear import Float8Linear

    model = build_skeleton(config_of(), spec=SPEC, dtype=torch.bfloat16)
    plan = plan_model(model, tp=1)
    float8.convert(model, plan=plan)
    swapped = {name for name, module in model.named_modules() if isinstance(module, Float8Linear)}
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert linear - swapped == {"lm_head"} and len(swapped) == 7 * len(plan.layers)


def run(mesh: Mesh, config: Any, specs: list[EngineSpec]) -> list[EngineRun]:
    """Train with each spec; a rank is a fork that may be used again, so the switch is set back."""
    float8._EMULATED = True
    try:
        return [run_engine(mesh, spec, config, None, BATCHES, accumulation=1) for spec in specs]
    finally:
        float8._EMULATED = False


def whole_gradients(runs: list[EngineRun]) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for rank in runs:
        for name, named in rank.gradients.items():
            _fill(found.setdefault(name, torch.full(named.global_shape, torch.nan)), named)
    return found


def _fill(whole: torch.Tensor, named: NamedTensor) -> None:
    for piece in named.pieces:
        whole[tuple(slice(o, o + n) for o, n in zip(piece.offsets, piece.tensor.shape, strict=True))] = piece.tensor


def distance(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The size of the difference of all gradients as one vector, relative to the expected one."""
    assert found.keys() == expected.keys()
    difference = sum(float((found[name] - expected[name]).double().square().sum()) for name in expected)
    return math.sqrt(difference / sum(float(g.double().square().sum()) for g in expected.values()))


Meshes = dict[tuple[int, int], tuple[list[EngineRun], list[EngineRun]]]


@pytest.fixture(scope="module")
def meshes() -> Meshes:
    """By (dp, tp): every rank's run in float8, and in bf16."""
    pytest.importorskip("torchao", reason="torchao is not installed: pip install torchao")
    found: Meshes = {}
    for dp, tp in ((1, 1), (1, 2), (2, 2)):
        ranks = run_on_mesh(run, config_of(), [SPEC, replace(SPEC, float8=False)], dp=dp, tp=tp)
        found[dp, tp] = ([rank[0] for rank in ranks], [rank[1] for rank in ranks])
    return found


@pytest.fixture(scope="module")
def exact() -> EngineRun:
    (ranks,) = run_on_mesh(run, config_of(), [replace(SPEC, float8=False, precision="fp32")])
    return ranks[0]


def test_it_trains_on_every_mesh(meshes: Meshes) -> None:
    """Shows a gradient that float8 loses: these rows are learnt in six steps in bf16 too."""
    for quantised, plain in meshes.values():
        fall = quantised[0].losses[0] - quantised[0].losses[-1]
        assert fall > 0.5 * (plain[0].losses[0] - plain[0].losses[-1]) > 0
        assert all(rank.losses == quantised[0].losses for rank in quantised)


def test_gradients_move_by_what_e4m3_rounds_and_by_more_than_bf16_does(meshes: Meshes, exact: EngineRun) -> None:
    """Shows products that stay in bf16, and a part of a gradient that float8 loses on some mesh."""
    expected = whole_gradients([exact])
    for quantised, plain in meshes.values():
        bf16 = distance(whole_gradients(plain), expected)
        assert bf16 < distance(whole_gradients(quantised), expected) < MODEL_BOUND + bf16


def test_tp_sizes_agree_within_the_bound(meshes: Meshes) -> None:
    """Both are off the exact gradient by at most the bound, independently where they round otherwise."""
    alone = whole_gradients(meshes[1, 1][0])
    for mesh in ((1, 2), (2, 2)):
        assert distance(whole_gradients(meshes[mesh][0]), alone) < math.sqrt(2) * MODEL_BOUND


def test_gradients_reach_every_parameter(meshes: Meshes) -> None:
    model = build_skeleton(config_of(), spec=SPEC, dtype=torch.float32)
    for quantised, _ in meshes.values():
        gradients = whole_gradients(quantised)
        assert gradients.keys() == {f"grad.{name}" for name, _ in model.named_parameters()}
        assert all(bool(g.isfinite().all()) and bool(g.any()) for g in gradients.values())


@pytest.mark.usefixtures("torchao")
def test_recomputation_and_compilation_change_nothing() -> None:
    """Shows a layer that torchao's products keep from tracing whole, and products that recomputation casts anew."""
    modes = [replace(SPEC, activation_checkpointing=mode) for mode in ("none", "selective", "full")]
    compiled = replace(SPEC, activation_checkpointing="selective", compile=True, compile_backend="aot_eager")
    config = config_of(num_hidden_layers=1)
    ranks = run_on_mesh(run, config, [*modes, compiled], tp=2, timeout=240.0, fresh=True)
    for none, *others in ranks:
        assert [other.losses for other in others] == [none.losses] * 3  # aot_eager has the same kernels


def told(mesh: Mesh, config: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    float8._EMULATED = True
    try:
        engines = [
            FSDP2Engine(spec, config=config, weights=None, mesh=mesh) for spec in (SPEC, replace(SPEC, float8=False))
        ]
    finally:
        float8._EMULATED = False
    return engines[0].warnings, engines[1].warnings


@pytest.mark.usefixtures("torchao")
def test_the_engine_says_that_it_is_not_exact() -> None:
    assert run_on_mesh(told, config_of()) == [
        (("matrix products run in float8 (rowwise): losses are not exact",), ()),
    ]


def refusal(spec: EngineSpec, device: torch.device, **model: Any) -> str:
    with pytest.raises(ValueError) as error:
        check(spec, layout=model.pop("layout", ONE), device=device, **model)
    return str(error.value)


def test_a_cpu_is_refused_without_a_model() -> None:
    assert refusal(SPEC, CPU) == (
        "float8=True: the device is the CPU, which has no float8 products; it needs an NVIDIA GPU of compute "
        "capability 8.9 or higher: leave float8 out."
    )


def see_gpu(monkeypatch: pytest.MonkeyPatch, name: str, capability: tuple[int, int]) -> None:
    """What torch says of such a GPU, on a machine that need not have one."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)


def test_an_older_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    see_gpu(monkeypatch, "NVIDIA A100-SXM4-80GB", (8, 0))
    assert refusal(SPEC, GPU) == (
        "float8=True: NVIDIA A100-SXM4-80GB has compute capability 8.0; it needs an NVIDIA GPU of compute capability "
        "8.9 or higher: leave float8 out."
    )


@pytest.mark.usefixtures("torchao")
def test_a_new_gpu_and_one_that_the_driver_does_not_see_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert check(SPEC, layout=ONE, device=GPU) is None
    see_gpu(monkeypatch, "NVIDIA L40S", (8, 9))
    assert check(SPEC, layout=ONE, device=GPU) is None


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "float32"), ("fp16", "float16")])
def test_a_precision_other_than_bf16_is_refused(precision: str, dtype: str) -> None:
    assert refusal(replace(SPEC, precision=precision), GPU) == (
        f"float8=True: row-wise float8 products give bf16, and precision='{precision}' computes in {dtype}: use "
        f"precision='bf16', or leave float8 out."
    )


def test_an_environment_without_torchao_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    assert refusal(SPEC, GPU) == (
        "float8=True needs the package torchao, which is not installed here: run `pip install torchao`, or leave "
        "float8 out."
    )


@pytest.mark.parametrize(
    ("family", "changes", "tp", "message"),
    [
        (
            "qwen3",
            {"intermediate_size": 48},
            2,
            "float8=True: the weight of model.layers.0.mlp.gate_proj is 24 x 32 on a rank at tp_size=2, and float8 "
            "products need multiples of 16: choose another tp_size, or leave float8 out.",
        ),
        (
            "starcoder2",
            {},
            2,
            "float8=True: model.layers.0.self_attn.o_proj adds its bias after the sum over tp_size=2 ranks, which is "
            "not done in float8: use tp_size=1, or leave float8 out.",
        ),
    ],
)
def test_a_layer_that_cannot_run_in_float8_is_refused_by_name(
    emulated: None, family: str, changes: dict[str, Any], tp: int, message: str
) -> None:
    model = build_skeleton(config_of(family, **changes), spec=SPEC, dtype=torch.float32)
    assert refusal(SPEC, CPU, layout=Layout(dp=1, tp=tp), model=model) == message
    check(SPEC, layout=ONE, device=CPU, model=model)
