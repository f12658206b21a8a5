"""An exported folder gives the training model's logits through `from_pretrained`, with either engine."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tp2d_ckpt import Checkpointer
from tp2d_mesh import Mesh, model_batch
from tp2d_mesh.testing import run_on_mesh
from tp2d_mesh.testing.parity import TINY, micro_batches, random_batches, tiny_model
from tp2d_train.commands.export import main
from tp2d_train.config import TrainConfig
from tp2d_train.runs.run import find_run
from tp2d_train.setup import engine as setup_engine
from tp2d_train.setup import model as setup_model
from transformers import AutoModelForCausalLM

BATCHES = random_batches(steps=2, rows=4, seq_length=12, vocab_size=TINY["vocab_size"])


def train_and_save(mesh: Mesh, settings: TrainConfig, root: Path) -> torch.Tensor:
    """Two steps, a checkpoint, and this rank's part of the trained model's logits."""
    engine: Any = setup_engine.build(settings, setup_model.build(settings), mesh=mesh, progress=print)
    for batch in BATCHES:
        engine.train_step(micro_batches(batch, layout=mesh.layout, rank=mesh.rank, accumulation=1))
    Checkpointer(root, mesh=mesh).save(step=2, tensors=engine.state(), state={}, rank_state={})
    engine.evaluate(BATCHES[0])
    with torch.no_grad():
        logits = model_batch(BATCHES[0], config=engine.model.config, device=mesh.device).logits(engine.model)
    engine.close()
    return logits


@pytest.mark.parametrize("engine", ["fsdp2", "autotp"])
@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_the_exported_folder_gives_the_training_models_logits(
    engine: str, family: str, llama: Path, tmp_path: Path
) -> None:
    """Shows one rank's shard exported for the whole weight, and a tie that is lost or doubled."""
    model, run = tmp_path / "model", tmp_path / "runs" / "a"
    untrained = tiny_model(family, dtype=torch.float32)
    untrained.save_pretrained(model)
    run.mkdir(parents=True)
    settings = TrainConfig(
        model_name=str(model), tokenizer_name=str(llama), seq_length=12, engine=engine, learning_rate=1e-2
    )
    (run / "config.yaml").write_text(yaml.safe_dump(settings.as_dict()))
    parts = run_on_mesh(train_and_save, settings, run / "checkpoints", dp=2, tp=2)

    assert main(["a", "--storage-path", str(tmp_path / "runs")]) == 0
    exported = AutoModelForCausalLM.from_pretrained(run / "export-00000002", dtype=torch.float32)
    with torch.no_grad():
        logits = exported(input_ids=BATCHES[0]["input_ids"]).logits
    torch.testing.assert_close(torch.cat(parts[:2], dim=-1), logits, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits, untrained(BATCHES[0]["input_ids"]).logits, atol=0.01)
    assert json.loads((run / "export-00000002" / "tokenizer_config.json").read_text())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("frist", "there is no run 'frist' in {here}; did you mean first?"),
        ("first", "run 'first' in {here} has no checkpoint: it has not saved yet"),
        ("first --dtype int3", "unknown dtype 'int3': choose fp32, bf16, fp16"),
        ("first --ouput x", "unknown option --ouput; did you mean --output?"),
        ("--name first", "unknown option --name; tp2d export --help lists all"),
    ],
)
def test_a_mistake_is_one_line(line: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    find_run(TrainConfig(name="first", storage_path=str(tmp_path))).start()
    assert main([*line.split(), "--storage-path", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {message.format(here=tmp_path)}\n"
