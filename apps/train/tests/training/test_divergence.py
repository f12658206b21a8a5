"""A run that diverges, and one bad batch in a healthy run: alike with both engines on a mesh, and in one process."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tp2d_ckpt import verify
from tp2d_mesh import Mesh
from tp2d_mesh.testing import MeshError, run_on_mesh
from tp2d_train.commands.train import main
from tp2d_train.contracts import Engine
from tp2d_train.report.metrics import read_lines
from tp2d_train.runs.folder import RunFolder
from tp2d_train.setup import engine as setup_engine
from tp2d_train.training.worker import train_func

from apps.train.tests.command_line import SMALL, write_text

WORDS = ("the", "model", "reads", "a", "line", "of", "words", "and", "learns", "which", "word", "comes", "next")
BAD = 5


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """12 steps of 4 rows an epoch."""
    text = [" ".join(WORDS[: 3 + at % 11]) + f" {at}" for at in range(48)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in text))
    return {
        "dataset_name": str(tmp_path / "text.jsonl"),
        "dataset_percentage": 100,
        "holdout_percentage": 0,
        "packing": "pad",
        "seq_length": 12,
        "storage_path": str(tmp_path),
        "num_epochs": 4,
        "lr_scheduler": "constant",
        "log_interval": 1,
        "warmup_steps": 0,
        "device": "cpu",
    }


def train(mesh: Mesh, settings: dict[str, Any]) -> dict[str, Any]:
    return train_func(settings)


def train_with_a_bad_batch(mesh: Mesh, settings: dict[str, Any]) -> dict[str, Any]:
    """The same; on the last rank alone the logits of step `BAD` are not finite."""
    build = setup_engine.build

    def poisoned(*args: Any, **kwargs: Any) -> Engine:
        engine: Any = build(*args, **kwargs)
        step, steps = engine.train_step, iter(range(1, 1000))

        def train_step(micro_batches: Any) -> Any:
            bad = next(steps) == BAD and mesh.rank == mesh.layout.world_size - 1
            head = engine.model.get_output_embeddings()
            # Hidden states of NaN: the logits of this rank's part of the vocabulary are NaN, and of no other's.
            spoil = head.register_forward_pre_hook
            hook = spoil(lambda module, inputs: (inputs[0] * torch.nan, *inputs[1:])) if bad else None
            try:
                return step(micro_batches)
            finally:
                if hook is not None:
                    hook.remove()

        engine.train_step = train_step
        return engine

    setup_engine.build = poisoned
    try:
        return train_func(settings)
    finally:
        setup_engine.build = build


def run(function: Any, settings: dict[str, Any], *, dp: int = 2, tp: int = 2, **changed: Any) -> list[dict[str, Any]]:
    sizes = {"tp_size": tp, "dp_size": dp, "batch_size_per_gpu": 4 // dp}
    return run_on_mesh(function, settings | sizes | changed, dp=dp, tp=tp, timeout=120)


def values(settings: dict[str, Any], name: str, metric: str) -> list[float | None]:
    lines = read_lines(RunFolder(Path(settings["storage_path"]) / name).metrics)[0]
    return [line[metric] for line in lines if metric in line]


def skipped_steps(folder: Path) -> list[int]:
    return [event["step"] for event in read_lines(RunFolder(folder).events)[0] if event["event"] == "skipped"]


def diverge(settings: dict[str, Any], folder: Path, *, engine: str) -> str:
    """A healthy run of 12 steps goes on at a rate of 1e12; returns its error."""
    run(train, settings, name=folder.name, engine=engine, max_steps=12, save_interval_steps=4)
    rate = {"learning_rate": 1e12, "save_interval_steps": 1}
    with pytest.raises(MeshError, match="Diverged") as raised:
        run(train, settings, name=folder.name, engine=engine, **rate)
    return str(raised.value)


def test_a_ruinous_rate_is_skipped_at_the_same_steps_by_both_engines_and_the_checkpoint_before_is_whole(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    """Step 13 applies an update that ruins the model, with a finite loss; it is even saved. Checkpoint 12 stays."""
    messages = {engine: diverge(settings, tmp_path / engine, engine=engine) for engine in ("fsdp2", "autotp")}
    assert skipped_steps(tmp_path / "fsdp2") == skipped_steps(tmp_path / "autotp") == [14, 15, 16, 17]
    for engine, message in messages.items():
        assert "4 steps in a row were skipped, from step 14 on, because the gradient is not finite" in message
        loss = values(settings, engine, "loss")[12]
        assert f"the last loss was {loss:.4g}." in message
        (kept,) = (tmp_path / engine / "checkpoints").glob("step-00000012-*-kept")
        assert re.search(rf"The newest checkpoint from before is {kept}, of step 12", message)
        assert re.search(r"delete step-00000013-\w{8}, which may hold a ruined model, and resume", message)
        verify(kept)
        assert not list((tmp_path / engine / "checkpoints").glob("step-00000014-*"))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_one_bad_batch_is_skipped_and_the_run_goes_on_as_one_process_does(
    settings: dict[str, Any], tmp_path: Path, optimizer: str
) -> None:
    """Shows a rank that steps where another skips, moments that took in a NaN, a step count that went on.

    Without a skip the weights are equal after every step, so later losses differ by rounding alone. AdamW at a small
    rate: it divides by what is nearly zero and makes more of the last digit's noise with every step.
    """
    settings |= {"optimizer": optimizer, "learning_rate": 0.1 if optimizer == "sgd" else 1e-4, "max_steps": 10}
    run(train_with_a_bad_batch, settings, dp=1, tp=1, name="one")
    reference = values(settings, "one", "loss")
    for engine in ("fsdp2", "autotp"):
        run(train_with_a_bad_batch, settings, name=engine, engine=engine)
        losses = values(settings, engine, "loss")
        assert skipped_steps(tmp_path / engine) == [BAD] and losses[BAD - 1] is reference[BAD - 1] is None
        assert losses[BAD:] == pytest.approx(reference[BAD:], abs=1e-5)
        assert losses[: BAD - 1] == pytest.approx(reference[: BAD - 1], abs=1e-5)
        assert values(settings, engine, "tokens") == values(settings, "one", "tokens")


def test_the_command_line_says_it_in_one_line_and_ends_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What failed is training, and no rank."""
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path, lines=30)
    assert main([*SMALL, "--name", "run", "--learning-rate", "1e12", "--lr-scheduler", "constant"]) == 1
    said = capsys.readouterr()
    assert said.err.startswith("error: training diverged: 4 steps in a row were skipped, from step ")
    assert said.err.endswith("There is no checkpoint from before: start anew under another name.\n")
    assert said.err.count("\n") == 1 and "Traceback" not in said.out + said.err
    assert (tmp_path / "runs" / "run" / "failure.log").exists()  # by which `tp2d runs` knows that it failed
    assert re.search(r"warning: step \d was skipped: its gradient is not finite", said.out)
