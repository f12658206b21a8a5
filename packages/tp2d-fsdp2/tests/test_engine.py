"""The engine's contract: state by name, evaluation, options, and what it refuses."""

import json
import os
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor
from tp2d_fsdp2 import FSDP2Engine, check, engine
from tp2d_fsdp2.gradients import _sum_of_squares
from tp2d_fsdp2.sharding import least_memory
from tp2d_fsdp2.testing import run_engine
from tp2d_mesh import IGNORED, PRECISIONS, EngineSpec, Layout, Mesh, build_skeleton
from tp2d_mesh.testing import run_on_mesh
from tp2d_mesh.testing.parity import TINY, micro_batches, random_batches, tiny_model

BATCHES = random_batches(steps=4, rows=4, seq_length=12, vocab_size=TINY["vocab_size"])

CPU = torch.device("cpu")
SPEC = EngineSpec(learning_rate=1e-2, max_grad_norm=None)


def config_of(family: str, **changes: Any) -> Any:
    return tiny_model(family, dtype=torch.float32, **changes).config


def placements(mesh: Mesh, config: Any) -> dict[str, tuple]:
    engine = FSDP2Engine(SPEC, config=config, weights=None, mesh=mesh)
    found = {}
    for name, parameter in engine.model.named_parameters():
        assert isinstance(parameter, DTensor), name
        found[name] = (parameter.device_mesh.mesh_dim_names, tuple(parameter.shape), parameter.to_local().numel())
    assert engine.parameter_count == sum(torch.Size(shape).numel() for _, shape, _ in found.values())
    assert not engine.optimizer.state  # counting parameters creates no moments
    engine.close()
    return found


def test_every_parameter_lies_on_the_mesh_and_no_rank_holds_the_model() -> None:
    """Shows a parameter left off the tp axis, or held whole by a rank."""
    config = config_of("qwen3")
    whole = {n: p.numel() for n, p in tiny_model("qwen3", dtype=torch.float32).named_parameters()}
    ranks = run_on_mesh(placements, config, dp=2, tp=2)
    for found in ranks:
        assert {name: axes for name, (axes, _, _) in found.items()} == dict.fromkeys(whole, ("dp", "tp"))
        held = sum(numel for _, _, numel in found.values())
        assert held < 0.27 * sum(whole.values())


def stock_norm(mesh: Mesh, config: Any) -> tuple[float, float]:
    """The engine's norm of a step, and torch's own clip_grad_norm_ on the same DTensor gradients."""
    engine = FSDP2Engine(SPEC, config=config, weights=None, mesh=mesh)
    seen: list[float] = []

    def stock(*_: Any) -> None:
        norm = torch.nn.utils.clip_grad_norm_(engine.model.parameters(), 1e9)
        seen.append(float(norm.full_tensor()))

    engine.optimizer.register_step_pre_hook(stock)
    stats = engine.train_step(micro_batches(BATCHES[0], layout=mesh.layout, rank=mesh.rank, accumulation=1))
    engine.close()
    return float(stats.grad_norm), seen[0]


def test_norm_equals_torchs_own() -> None:
    """Shows replicated gradients counted tp times."""
    for norm, stock in run_on_mesh(stock_norm, config_of("gemma3_text"), dp=2, tp=2):
        assert norm == pytest.approx(stock, rel=1e-5)


def test_norm_of_a_large_gradient_keeps_its_digits() -> None:
    """Shows the CPU's float32 norm, which is off by 9e-5 here: more than clipping may differ between meshes."""
    gradient = torch.randn(4_000_000, generator=torch.Generator().manual_seed(0))
    found = _sum_of_squares([gradient], like=gradient.new_zeros(())).sqrt()
    assert float(found) == pytest.approx(float(gradient.double().norm()), rel=1e-6)


def interrupted(mesh: Mesh, config: Any, interrupt: bool) -> tuple[list[float], dict]:
    """Four steps; with `interrupt`, the engine is replaced after two by a fresh one filled from its state."""
    spec = EngineSpec(learning_rate=1e-2)
    engine = FSDP2Engine(spec, config=config, weights=None, mesh=mesh)
    losses = []
    for step, batch in enumerate(BATCHES):
        if interrupt and step == 2:
            saved = {n: [p.tensor.clone() for p in t.pieces] for n, t in engine.state().items()}
            extra = json.loads(json.dumps(engine.extra_state()))
            engine.close()
            engine = FSDP2Engine(replace(spec, seed=7), config=config, weights=None, mesh=mesh)
            for name, tensor in engine.state().items():
                for piece, value in zip(tensor.pieces, saved[name], strict=True):
                    piece.tensor.copy_(value)
            engine.load_extra_state(extra)
        stats = engine.train_step(micro_batches(batch, layout=mesh.layout, rank=mesh.rank, accumulation=1))
        losses.append(float(stats.loss))
    state = {n: [p.tensor for p in t.pieces] for n, t in engine.state().items()}
    engine.close()
    return losses, state


def test_an_engine_filled_from_anothers_state_goes_on_bit_for_bit() -> None:
    """Shows a moment, a weight or the step count that the state leaves out."""
    config = config_of("qwen2")
    straight = run_on_mesh(interrupted, config, False, dp=2, tp=2)
    resumed = run_on_mesh(interrupted, config, True, dp=2, tp=2)
    for (losses, weights), (losses_again, weights_again) in zip(straight, resumed, strict=True):
        assert losses == losses_again
        for name, pieces in weights.items():
            assert all(torch.equal(a, b) for a, b in zip(pieces, weights_again[name], strict=True)), name
    assert any(name.startswith("optim.") and name.endswith(".exp_avg_sq") for name in straight[0][1])


def evaluation(mesh: Mesh, config: Any) -> tuple[float, int, float]:
    engine = FSDP2Engine(EngineSpec(learning_rate=0.0), config=config, weights=None, mesh=mesh)
    rows = micro_batches(BATCHES[0], layout=mesh.layout, rank=mesh.rank, accumulation=1)
    loss_sum, tokens = engine.evaluate(rows[0])
    stats = engine.train_step(rows)
    assert int(stats.tokens) == int(tokens) and int(stats.positions) == BATCHES[0]["labels"].numel()
    engine.close()
    return float(loss_sum), int(tokens), float(stats.loss)


def test_evaluation_sums_over_dp_and_counts_tokens_once() -> None:
    """Shows tokens or positions counted once per tp rank, and a loss of this rank's rows alone."""
    expected = int((BATCHES[0]["labels"][:, 1:] != IGNORED).sum())
    for loss_sum, tokens, train_loss in run_on_mesh(evaluation, config_of("llama"), dp=2, tp=2):
        assert tokens == expected
        assert loss_sum / tokens == pytest.approx(train_loss, rel=1e-6)


def losses(mesh: Mesh, config: Any, spec: EngineSpec) -> list[float]:
    return run_engine(mesh, spec, config, None, BATCHES, accumulation=2).losses


@pytest.fixture(scope="module")
def plain_losses() -> list[float]:
    return run_on_mesh(losses, config_of("qwen3"), SPEC, dp=2, tp=2)[0]


@pytest.mark.parametrize(
    ("options", "bound"),
    [
        ({"activation_checkpointing": "full"}, 0.0),  # the same arithmetic, done twice
        ({"activation_checkpointing": "selective"}, 0.0),
        ({"attn_implementation": "eager"}, 1e-5),  # other kernels, fp32
        ({"precision": "bf16"}, 0.02),  # 8 bits of mantissa: 2**-9 relative on a loss near ln(99) = 4.6, twice over
        ({"precision": "bf16-pure"}, 0.05),  # rounding of the weights adds to it
    ],
    ids=str,
)
def test_options_change_the_arithmetic_no_more_than_they_say(
    options: dict, bound: float, plain_losses: list[float]
) -> None:
    for found in run_on_mesh(losses, config_of("qwen3"), replace(SPEC, **options), dp=2, tp=2):
        assert max(abs(a - b) for a, b in zip(found, plain_losses, strict=True)) <= bound


def test_fp16_scales_the_loss_and_skips_steps_that_overflow() -> None:
    """Shows gradients left scaled: the norm would be 65,536 times too large and AdamW would hide it."""
    for steps_taken, scale, norm, plain_norm in run_on_mesh(fp16_run, config_of("llama"), dp=2, tp=1):
        assert norm == pytest.approx(plain_norm, rel=0.02)
        assert steps_taken >= 1 and scale <= 2.0**16


def fp16_run(mesh: Mesh, config: Any) -> tuple[int, float, float, float]:
    """fp16 is refused on a CPU, where it is slow; here the refusal is taken away."""
    batch = micro_batches(BATCHES[0], layout=mesh.layout, rank=mesh.rank, accumulation=1)
    spec = EngineSpec(learning_rate=0.0)
    plain = FSDP2Engine(spec, config=config, weights=None, mesh=mesh)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "resolve_precision", lambda name, _: PRECISIONS[name])
        half = FSDP2Engine(replace(spec, precision="fp16"), config=config, weights=None, mesh=mesh)
    norms = [float(half.train_step(batch).grad_norm) for _ in range(8)]
    extra = half.extra_state()
    finite = [norm for norm in norms if norm < float("inf")]
    plain_norm = float(plain.train_step(batch).grad_norm)
    half.close()
    plain.close()
    return extra["optimizer_steps"], extra["loss_scale"]["value"], finite[-1], plain_norm


REFUSALS = [
    ("llama", {"num_key_value_heads": 2}, 4, "num_key_value_heads=2 is not divisible by tp_size=4"),
    ("mixtral", {}, 2, "asks for the tensor parallel style 'packed_colwise'"),
    ("gpt2", {}, 2, "model type 'gpt2' ships no tensor parallel plan"),
]


@pytest.mark.parametrize(("family", "changes", "tp", "message"), REFUSALS)
def test_refusals_of_a_model_need_no_process_group(family: str, changes: dict, tp: int, message: str) -> None:
    model = build_skeleton(config_of(family, **changes), spec=SPEC, dtype=torch.float32)
    with pytest.raises(ValueError, match=message):
        check(SPEC, layout=Layout(dp=1, tp=tp), device=CPU, model=model)
    assert check(SPEC, layout=Layout(dp=2, tp=1), device=CPU, model=model).tp == 1


def test_a_family_whose_layers_do_not_compile_whole_is_refused_by_name_and_left_alone_by_default() -> None:
    model = build_skeleton(config_of("mixtral"), spec=SPEC, dtype=torch.float32)
    with pytest.raises(ValueError, match="compile=True: the layers of model type 'mixtral' have not been shown"):
        check(replace(SPEC, compile=True), layout=Layout(dp=2, tp=1), device=CPU, model=model)
    gpu = torch.device("cuda")
    chosen = [(family, device.type) for family in ("mixtral", "qwen2") for device in (CPU, gpu)]
    found = [engine.is_compiled(SPEC, model_type=family, device=torch.device(kind)) for family, kind in chosen]
    assert found == [False, False, False, True]
    assert not engine.is_compiled(replace(SPEC, compile=False), model_type="qwen2", device=gpu)


def least(mesh: Mesh) -> float:
    return least_memory(mesh)


def test_every_rank_decides_by_the_memory_of_the_smallest_device() -> None:
    """Shows a rule by which ranks differ; on the CPU each has its part of the machine's memory."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert run_on_mesh(least, dp=2, tp=2) == [whole / 4] * 4


def test_a_precision_the_device_lacks_is_refused_without_a_model() -> None:
    layout = Layout(dp=1, tp=1)
    with pytest.raises(ValueError, match="precision='fp16' needs a GPU and the device is the CPU"):
        check(replace(SPEC, precision="fp16"), layout=layout, device=CPU)
    assert check(SPEC, layout=layout, device=CPU) is None


def refusals(mesh: Mesh, configs: list) -> list[str]:
    messages = []
    for config in configs:
        with pytest.raises(ValueError) as error:
            FSDP2Engine(SPEC, config=config, weights=None, mesh=mesh)
        messages.append(str(error.value))
    return messages


def test_the_engine_refuses_what_check_refuses() -> None:
    configs = [config_of(family, **changes) for family, changes, _, _ in REFUSALS]
    for messages in run_on_mesh(refusals, configs, tp=4):
        for message, (_, _, tp, expected) in zip(messages, REFUSALS, strict=True):
            assert re.search(expected.replace(f"tp_size={tp}", "tp_size=4"), message)


def compiled(mesh: Mesh, config: Any) -> tuple[list[float], list[float]]:
    fast = replace(SPEC, compile=True, activation_checkpointing="selective")
    return losses(mesh, config, SPEC), losses(mesh, config, fast)


def test_compiled_layers_train_to_the_same_losses() -> None:
    """Shows a crossing or a local parameter that tracing loses: a gradient of zero, or of this rank alone."""
    config = config_of("qwen3", num_hidden_layers=1)
    for plain, found in run_on_mesh(compiled, config, tp=2, timeout=240.0, fresh=True):
        assert max(abs(a - b) for a, b in zip(found, plain, strict=True)) < 1e-5


def no_batches(mesh: Mesh, config: Any) -> None:
    engine = FSDP2Engine(SPEC, config=config, weights=None, mesh=mesh)
    with pytest.raises(ValueError, match="train_step needs at least one micro-batch"):
        engine.train_step([])
    engine.close()


def test_a_step_without_batches_is_refused() -> None:
    run_on_mesh(no_batches, config_of("qwen2"))


def without_labels(mesh: Mesh, config: Any) -> tuple[float, float, bool]:
    engine = FSDP2Engine(EngineSpec(optimizer="sgd", learning_rate=1.0), config=config, weights=None, mesh=mesh)
    before = {name: p.detach().to_local().clone() for name, p in engine.parameters.items()}
    rows = BATCHES[0] | {"labels": torch.full_like(BATCHES[0]["labels"], IGNORED)}
    stats = engine.train_step([rows])
    same = all(torch.equal(before[name], p.detach().to_local()) for name, p in engine.parameters.items())
    engine.close()
    return float(stats.tokens), float(stats.grad_norm), same


def test_a_step_without_a_label_changes_nothing() -> None:
    """Shows a division by no tokens: one such batch would make every weight NaN."""
    assert run_on_mesh(without_labels, config_of("llama"), dp=1, tp=2) == [(0.0, 0.0, True)] * 2
