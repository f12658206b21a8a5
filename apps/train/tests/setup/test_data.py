"""What the driver and a rank find in the data, and what they refuse and say of too few of them."""

import json
from pathlib import Path
from typing import Any

import pytest
from tp2d_data import TooFewRows
from tp2d_mesh import Mesh
from tp2d_mesh.testing import MeshError, run_on_mesh
from tp2d_train.config import TrainConfig
from tp2d_train.setup.data import build, check, check_vocabulary
from tp2d_train.setup.model import resolve_model
from transformers import LlamaConfig


@pytest.fixture
def chats(tmp_path: Path) -> str:
    """120 short chats of one's own."""
    path = tmp_path / "chats.jsonl"
    turns = [(f"What is {number}?", f"It is {number}, as always.") for number in range(120)]
    path.write_text("".join(json.dumps({"messages": chat(*turn)}) + "\n" for turn in turns))
    return str(path)


def chat(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def check_data(**settings: Any) -> int | None:
    config = TrainConfig(**settings)
    return check(config, resolve_model(config))


def describe(mesh: Mesh, settings: dict[str, Any]) -> dict[str, Any]:
    config = TrainConfig(**settings, tp_size=1, dp_size=1)
    found = build(config, mesh=mesh, model=resolve_model(config), progress=print)
    documents = [part and part.statistics and part.statistics.documents for part in (found.loader, found.held_out)]
    return {"documents": documents, "warnings": found.warnings, "batches": len(found.loader)}


def opened(**settings: Any) -> dict[str, Any]:
    return run_on_mesh(describe, settings, dp=1)[0]


def test_ones_own_chats_are_all_used_by_default(chats: str) -> None:
    """With any model; a percentage of 10 once left out nine of ten. The built-in model needs no network."""
    data = {"dataset_name": chats, "loss_on": "assistant", "seq_length": 64}
    assert TrainConfig(model_name="org/model").dataset_percentage == 100 and TrainConfig().dataset_percentage == 50
    rows = check_data(**data, holdout_percentage=0)
    assert rows is not None and rows > 20
    found = opened(**data, holdout_percentage=0)
    assert found == {"documents": [120, None], "warnings": (), "batches": rows // 8}
    found = opened(**data)  # one of a hundred is held out
    assert sum(found["documents"]) == 120
    (warning,) = found["warnings"]
    assert (
        "fewer than one micro-batch of 8 = dp_size 1 x batch_size_per_gpu 8: its loss says little; raise hold"
        in warning
    )


def test_too_few_rows_are_refused_by_the_driver(chats: str) -> None:
    with pytest.raises(TooFewRows, match=r"rows to train on, of 1.. documents, are fewer than .* batch of 400 = "):
        check_data(dataset_name=chats, loss_on="assistant", batch_size_per_gpu=200)
    with pytest.raises(TooFewRows, match=r"of 1\d documents \(the dataset has 120, see dataset_percentage\)"):
        check_data(dataset_name=chats, loss_on="assistant", batch_size_per_gpu=200, dataset_percentage=10)


def test_an_evaluation_without_data_is_refused_where_it_was_asked_for(chats: str, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text(json.dumps({"messages": chat("Who?", "")[:1]}) + "\n")
    data = {"dataset_name": chats, "loss_on": "assistant", "holdout_percentage": 0.0001}
    with pytest.raises(ValueError, match=r"raise holdout_percentage 0.0001, or .* leave out eval_interval_steps$"):
        check_data(**data, eval_interval_steps=1)
    with pytest.raises(ValueError, match=r"1 left out \(no assistant turn\).* leave out eval_dataset$"):
        check_data(**data, eval_dataset=str(tmp_path / "empty.jsonl"))
    (warning,) = opened(**data)["warnings"]
    assert warning.startswith("no evaluation, dataset ") and "; raise holdout_percentage 0.0001, or name an" in warning
    with pytest.raises(MeshError, match="leave out eval_interval_steps"):
        opened(**data, eval_interval_steps=1)


def test_a_dataset_to_evaluate_on(chats: str, tmp_path: Path) -> None:
    """It is read whole, and nothing of the training data is held out beside it."""
    (tmp_path / "held.jsonl").write_text(
        "".join(json.dumps({"messages": chat("Who?", str(i))}) + "\n" for i in range(40))
    )
    data = {"dataset_name": chats, "loss_on": "assistant", "eval_dataset": str(tmp_path / "held.jsonl")}
    found = opened(**data, dataset_percentage=50, holdout_percentage=20)
    assert found["documents"] == [60, 40]
    assert opened(**data, holdout_percentage=0)["documents"] == [120, 40], "0 is about the held-out share alone"
    with pytest.raises(ValueError, match=r"dataset \./none does not exist"):
        check_data(dataset_name=chats, loss_on="assistant", eval_dataset="./none")
    with pytest.raises(ValueError, match="has no field 'messages'; it has text"):
        check_data(dataset_name=chats, loss_on="assistant", eval_dataset="builtin:stdlib")


def test_nothing_is_counted_that_nobody_can_count_soon(chats: str) -> None:
    assert check_data(dataset_name=chats, loss_on="assistant", streaming=True, max_steps=1) is None


def test_a_stream_that_holds_nothing_out_says_what_to_do(chats: str) -> None:
    data = {"dataset_name": chats, "loss_on": "assistant", "streaming": True, "max_steps": 1, "num_workers": 1}
    (warning,) = run_on_mesh(warnings_of_stream, data | {"holdout_percentage": 0.0001}, dp=1)[0]
    assert "gives no row; raise holdout_percentage 0.0001, or name an eval_dataset" in warning


def warnings_of_stream(mesh: Mesh, settings: dict[str, Any]) -> tuple[str, ...]:
    config = TrainConfig(**settings, tp_size=1)
    return build(config, mesh=mesh, model=resolve_model(config), progress=print).warnings


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused() -> None:
    """Without the check an embedding look-up fails in the middle of a step, on a GPU with an unreadable error."""
    with pytest.raises(
        ValueError, match=r"the tokenizer has 101 tokens and the model's vocab_size is 100: set tokenizer"
    ):
        check_vocabulary(101, LlamaConfig(vocab_size=100))
    check_vocabulary(100, LlamaConfig(vocab_size=100))
