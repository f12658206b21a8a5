"""The engine beside its numbers: state that goes on bit for bit, precisions, evaluation, options, refusals."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tp2d_autotp import AutoTPEngine, AutoTPSpec
from tp2d_mesh import IGNORED, Mesh, NamedTensor
from tp2d_mesh.testing import run_on_mesh
from tp2d_mesh.testing.parity import TINY, micro_batches, random_batches, tiny_model

BATCHES = random_batches(steps=4, rows=8, seq_length=16, vocab_size=TINY["vocab_size"])


SPEC = AutoTPSpec(learning_rate=1e-2)
Saved = tuple[Any, Path]


def save(folder: Path, family: str = "qwen3", **changes: Any) -> Saved:
    """A model's configuration, and the folder of its weights."""
    model = tiny_model(family, dtype=torch.float32, **changes)
    model.save_pretrained(folder)
    return model.config, folder


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return save(tmp_path_factory.mktemp("qwen3"))


def train(engine: AutoTPEngine, batches: list, accumulation: int = 2) -> list[tuple[float, float]]:
    """Loss and norm of each step."""
    mesh = engine.mesh
    steps = [
        engine.train_step(micro_batches(batch, layout=mesh.layout, rank=mesh.rank, accumulation=accumulation))
        for batch in batches
    ]
    return [(float(step.loss), float(step.grad_norm)) for step in steps]


def copies(state: dict[str, NamedTensor]) -> dict[str, NamedTensor]:
    return {
        name: replace(tensor, pieces=tuple(replace(p, tensor=p.tensor.clone()) for p in tensor.pieces))
        for name, tensor in state.items()
    }


def fill(state: dict[str, NamedTensor], saved: dict[str, NamedTensor]) -> None:
    assert state.keys() == saved.keys()
    for name, tensor in state.items():
        for piece, source in zip(tensor.pieces, saved[name].pieces, strict=True):
            assert piece.offsets == source.offsets
            piece.tensor.copy_(source.tensor)


def bits(state: dict[str, NamedTensor]) -> dict[str, list[list[float]]]:
    return {name: [piece.tensor.flatten().tolist() for piece in tensor.pieces] for name, tensor in state.items()}


def goes_on(mesh: Mesh, config: Any, folder: Path, spec: AutoTPSpec) -> bool:
    """Two steps, state into a new engine drawn from another seed, two more; against four in one engine."""
    with closing(AutoTPEngine(spec, config=config, weights=folder, mesh=mesh)) as engine:
        train(engine, BATCHES[:2])
        tensors, extra = copies(engine.state()), engine.extra_state()
        expected = train(engine, BATCHES[2:]), bits(engine.state())
    with closing(AutoTPEngine(replace(spec, seed=7), config=config, weights=None, mesh=mesh)) as other:
        fill(other.state(), tensors)
        other.load_extra_state(extra)
        assert other.extra_state() == extra == {"optimizer_steps": 2, "loss_scale": None}
        return (train(other, BATCHES[2:]), bits(other.state())) == expected


@pytest.mark.parametrize(
    ("dp", "tp", "options"),
    [
        (2, 2, {"zero_stage": 1}),
        (2, 2, {"zero_stage": 2, "precision": "bf16"}),
        (2, 1, {"zero_stage": 1, "precision": "bf16-pure"}),
        (1, 4, {"zero_stage": 2}),
    ],
)
def test_a_new_engine_goes_on_bit_for_bit(dp: int, tp: int, options: dict, qwen3: Saved) -> None:
    """Shows state that is a copy, is incomplete, or that forward does not see (fp32 masters under bf16)."""
    assert run_on_mesh(goes_on, *qwen3, replace(SPEC, **options), dp=dp, tp=tp) == [True] * (dp * tp)


def boxes(mesh: Mesh, config: Any, folder: Path) -> dict[str, Any]:
    with closing(AutoTPEngine(SPEC, config=config, weights=folder, mesh=mesh)) as engine:
        state = engine.state()
        return {n: (t.global_shape, [(p.offsets, tuple(p.tensor.shape)) for p in t.pieces]) for n, t in state.items()}


@pytest.mark.parametrize(("dp", "tp"), [(2, 2), (2, 4)])
def test_the_boxes_of_all_ranks_tile_every_tensor(dp: int, tp: int, qwen3: Saved) -> None:
    """A checkpoint wants each element once, replicas in equal boxes; on 2x4 the shards of tp ranks differ in size."""
    ranks = run_on_mesh(boxes, *qwen3, dp=dp, tp=tp)
    for name, (shape, _) in ranks[0].items():
        held = torch.zeros(shape)
        for offsets, size in {box for rank in ranks for box in rank[name][1]}:
            held[tuple(slice(o, o + n) for o, n in zip(offsets, size, strict=True))] += 1
        assert bool((held == 1).all()), name
    assert ranks[0].keys() >= {f"optim.model.norm.weight.{moment}" for moment in ("exp_avg", "exp_avg_sq")}


def small_updates(mesh: Mesh, config: Any, folder: Path, precision: str) -> float:
    """The share of this rank's weights that one AdamW step of 1e-6 moves; tokens that do not occur have none."""
    spec = AutoTPSpec(precision=precision, learning_rate=1e-6)
    with closing(AutoTPEngine(spec, config=config, weights=folder, mesh=mesh)) as engine:
        weights = {name: tensor for name, tensor in engine.state().items() if name.startswith("model.")}
        before = copies(weights)
        train(engine, BATCHES[:1])
        pairs = [
            (piece.tensor, old.tensor)
            for name, tensor in weights.items()
            for piece, old in zip(tensor.pieces, before[name].pieces, strict=True)
        ]
        moved = sum(int((new != old).sum()) for new, old in pairs)
        return moved / sum(new.numel() for new, _ in pairs)


@pytest.mark.parametrize(("precision", "least", "most"), [("bf16", 0.7, 1.0), ("bf16-pure", 0.0, 0.2)])
def test_bf16_has_masters_that_keep_small_updates(precision: str, least: float, most: float, qwen3: Saved) -> None:
    for share in run_on_mesh(small_updates, *qwen3, precision, dp=2):
        assert least <= share <= most


def numbers_of(mesh: Mesh, config: Any, folder: Path, specs: list[AutoTPSpec]) -> list[list]:
    found = []
    for spec in specs:
        with closing(AutoTPEngine(spec, config=config, weights=folder, mesh=mesh)) as engine:
            found.append(train(engine, BATCHES))
    return found


def test_what_changes_only_speed_or_memory_changes_no_number(qwen3: Saved) -> None:
    """Every free key of a user's DeepSpeed JSON that touches gradients, and our own options, on both stages."""
    small_buckets = {"reduce_bucket_size": 500, "allgather_bucket_size": 500}
    variants: list[dict[str, Any]] = [
        {"zero_stage": 1},
        {"zero_stage": 2},
        {"zero_stage": 1, "activation_checkpointing": "full"},
        {"zero_stage": 2, "activation_checkpointing": "full", "overlap_comm": True},
        {"zero_stage": 1, "deepspeed_config": {"zero_optimization": {"reduce_scatter": False, "overlap_comm": True}}},
        {"zero_stage": 2, "deepspeed_config": {"zero_optimization": {"reduce_scatter": False}}},
        {"zero_stage": 1, "deepspeed_config": {"zero_optimization": {"contiguous_gradients": False}}},
        {"zero_stage": 2, "deepspeed_config": {"zero_optimization": {"use_multi_rank_bucket_allreduce": False}}},
        {"zero_stage": 2, "deepspeed_config": {"zero_optimization": small_buckets}},
    ]
    specs = [replace(SPEC, **options) for options in variants]
    for expected, *found in run_on_mesh(numbers_of, *qwen3, specs, dp=2, tp=2):
        for numbers in found:
            assert torch.tensor(numbers) == pytest.approx(torch.tensor(expected), rel=1e-6)


def evaluation(mesh: Mesh, config: Any, folder: Path) -> tuple[float, float, float, bool]:
    """Summed loss, token count, the same from a step's loss, and whether weights restored by hand are seen."""
    spec = AutoTPSpec(learning_rate=0.1, max_grad_norm=None)
    batch = micro_batches(BATCHES[0], layout=mesh.layout, rank=mesh.rank, accumulation=1)[0]
    with closing(AutoTPEngine(spec, config=config, weights=folder, mesh=mesh)) as engine:
        saved = copies(engine.state())
        before = engine.evaluate(batch)
        step = engine.train_step([batch])
        changed = engine.evaluate(batch)
        fill(engine.state(), saved)
        after = engine.evaluate(batch)
    assert changed[0] != before[0]
    assert int(step.positions) == BATCHES[0]["labels"].numel()
    return float(before[0]), float(before[1]), float(step.loss * step.tokens), bool(after[0] == before[0])


def test_evaluation_sums_over_the_global_batch_and_sees_restored_weights(qwen3: Saved) -> None:
    tokens = int((BATCHES[0]["labels"][:, 1:] != IGNORED).sum())
    for loss, count, trained, restored in run_on_mesh(evaluation, *qwen3, dp=2, tp=2):
        assert count == tokens
        assert loss == pytest.approx(trained, rel=1e-6)
        assert restored


def learning_rates(mesh: Mesh, config: Any, folder: Path) -> tuple[bool, bool]:
    """Whether a rate of zero leaves the weights, and one set later moves them."""
    with closing(AutoTPEngine(AutoTPSpec(learning_rate=0.0), config=config, weights=folder, mesh=mesh)) as engine:
        before = bits(engine.state())["model.model.norm.weight"]
        train(engine, BATCHES[:1])
        kept = bits(engine.state())["model.model.norm.weight"]
        engine.set_learning_rate(0.1)
        train(engine, BATCHES[:1])
        return kept == before, bits(engine.state())["model.model.norm.weight"] != before


def test_the_learning_rate_can_be_set(tmp_path: Path) -> None:
    assert run_on_mesh(learning_rates, *save(tmp_path, "qwen2")) == [(True, True)]


def dropout(mesh: Mesh, config: Any, folder: Path) -> tuple[float, float]:
    """The loss of each dp rank's own batch (the same on all) in training, and a random number drawn after it."""
    batch = {key: value[:4] for key, value in BATCHES[0].items()}
    with closing(AutoTPEngine(AutoTPSpec(seed=3), config=config, weights=folder, mesh=mesh)) as engine:
        engine.zero.train()
        loss = engine._loss_sum(engine.zero, engine._to_device(batch))
        return float(loss), float(torch.rand(()))


def test_dropout_differs_between_dp_ranks_and_not_between_tp_ranks(tmp_path: Path) -> None:
    saved = save(tmp_path, "llama", attention_dropout=0.5, intermediate_size=48)
    first, second, third, fourth = run_on_mesh(dropout, *saved, dp=2, tp=2)
    assert first == second and third == fourth and first != third


def refusals(mesh: Mesh, config: Any, specs: list[AutoTPSpec]) -> list[str]:
    messages = []
    for spec in specs:
        with pytest.raises(ValueError) as refusal:
            AutoTPEngine(spec, config=config, weights=None, mesh=mesh)
        AutoTPEngine(SPEC, config=config, weights=None, mesh=mesh).close()  # nothing is left that would stop another
        messages.append(str(refusal.value))
    return messages


def test_refused_options() -> None:
    refused: list[tuple[dict[str, Any], str]] = [
        ({"compile": True}, "compile=True has not been checked under DeepSpeed AutoTP: use the engine fsdp2 for it."),
        (
            {"activation_checkpointing": "selective"},
            "activation_checkpointing='selective' keeps matrix products that DeepSpeed AutoTP then sums over tp_size=2",
        ),
        ({"zero_stage": 3}, "zero_stage=3 splits the weights over dp as well"),
        (
            {"deepspeed_config": {"train_batch_size": 64}},
            "deepspeed_config sets train_batch_size=64, and the run",
        ),
    ]
    config = tiny_model("qwen2", dtype=torch.float32).config
    specs = [AutoTPSpec(**options) for options, _ in refused]
    for messages in run_on_mesh(refusals, config, specs, tp=2):
        for found, (_, message) in zip(messages, refused, strict=True):
            assert found.startswith(message)


def bad_folders(mesh: Mesh, config: Any, folder: Path) -> list[str]:
    messages = []
    for weights in (folder / "empty", folder / "other"):
        with pytest.raises(ValueError) as refusal:
            AutoTPEngine(SPEC, config=config, weights=weights, mesh=mesh)
        messages.append(str(refusal.value))
    return messages


def test_folders_without_the_models_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    save(tmp_path / "other", hidden_size=64)
    config = tiny_model("qwen3", dtype=torch.float32).config
    for empty, other in run_on_mesh(bad_folders, config, tmp_path, tp=2):
        assert empty.startswith(f"{tmp_path / 'empty'} holds neither model.safetensors nor model.safetensors.index")
        assert "has shape (99, 64) in" in other and "where the configuration says (99, 32)" in other


def no_batches(mesh: Mesh, config: Any) -> None:
    with (
        closing(AutoTPEngine(SPEC, config=config, weights=None, mesh=mesh)) as engine,
        pytest.raises(ValueError, match="train_step needs at least one micro-batch"),
    ):
        engine.train_step([])


def test_a_step_without_batches_is_refused() -> None:
    run_on_mesh(no_batches, tiny_model("qwen2", dtype=torch.float32).config)


def without_labels(mesh: Mesh, config: Any, folder: Path) -> tuple[float, float, bool]:
    spec = AutoTPSpec(optimizer="sgd", learning_rate=1.0)
    with closing(AutoTPEngine(spec, config=config, weights=folder, mesh=mesh)) as engine:
        before = bits(engine.state())
        stats = engine.train_step([BATCHES[0] | {"labels": torch.full_like(BATCHES[0]["labels"], IGNORED)}])
        return float(stats.tokens), float(stats.grad_norm), bits(engine.state()) == before


def test_a_step_without_a_label_changes_nothing(qwen3: Saved) -> None:
    """Shows a division by no tokens: one such batch would make every weight NaN."""
    assert run_on_mesh(without_labels, *qwen3, dp=1, tp=2) == [(0.0, 0.0, True)] * 2
