"""Whole runs by `train_func` on real meshes with the FSDP2 engine: what they compute and what they leave behind."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from tp2d_data import load_tokenizer
from tp2d_data.sources.holdout import is_held_out
from tp2d_mesh import Mesh
from tp2d_mesh.testing import MeshError, run_on_mesh
from tp2d_train.report.metrics import read_lines
from tp2d_train.runs.folder import RunFolder
from tp2d_train.training.worker import train_func

WORDS = ("the", "model", "reads", "a", "line", "of", "words", "and", "learns", "which", "word", "comes", "next")


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """A run of 4 steps of 4 rows over ragged lines."""
    lines = [" ".join(WORDS[: 3 + at % 11]) + f" {at}" for at in range(40)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    return {
        "dataset_name": str(tmp_path / "text.jsonl"),
        "dataset_percentage": 100,
        "holdout_percentage": 20,
        "seq_length": 12,
        "storage_path": str(tmp_path),
        "max_steps": 4,
        "log_interval": 1,
        "warmup_steps": 0,
        "device": "cpu",
    }


def train(mesh: Mesh, settings: dict[str, Any]) -> dict[str, Any]:
    return train_func(settings)


def run(settings: dict[str, Any], *, dp: int, tp: int, **changed: Any) -> list[dict[str, Any]]:
    """Every rank's summary; 4 rows a step on every mesh."""
    sizes = {"tp_size": tp, "dp_size": dp, "batch_size_per_gpu": 4 // dp}
    return run_on_mesh(train, settings | sizes | changed, dp=dp, tp=tp, timeout=120)


def lines(settings: dict[str, Any], name: str, metric: str = "loss") -> list[float]:
    path = RunFolder(Path(settings["storage_path"]) / name).metrics
    return [line[metric] for line in read_lines(path)[0] if metric in line]


def events(folder: Path, kind: str | None = None) -> list[dict[str, Any]]:
    return [event for event in read_lines(RunFolder(folder).events)[0] if kind in (None, event["event"])]


def ask_to_stop(folder: Path) -> None:
    """Rank 0 finds the request before the first step, and all ranks leave after the second."""
    folder.mkdir()
    RunFolder(folder).stop.touch()


def test_a_mesh_computes_what_one_process_computes(settings: dict[str, Any], tmp_path: Path) -> None:
    """Shows tp ranks that see different rows, dp ranks that see the same, and tokens counted once per tp rank.

    With SGD: AdamW divides by what is nearly zero and makes more of the last digit's noise with every step.
    """
    settings |= {"optimizer": "sgd", "learning_rate": 0.1}
    run(settings, dp=1, tp=1, name="one")
    summaries = run(settings, dp=2, tp=2, name="four")
    for metric in ("loss", "eval_loss"):
        assert lines(settings, "four", metric) == pytest.approx(lines(settings, "one", metric), abs=1e-5)
    assert lines(settings, "four", "grad_norm") == pytest.approx(lines(settings, "one", "grad_norm"), rel=2e-6)
    assert lines(settings, "four", "tokens") == lines(settings, "one", "tokens")
    assert lines(settings, "four", "eval_tokens") == lines(settings, "one", "eval_tokens")
    assert summaries[0] == json.loads((tmp_path / "four" / "summary.json").read_text())
    left = {path.name for path in (tmp_path / "four").iterdir()}
    assert left == {"checkpoints", "metrics.jsonl", "summary.json", "loss.png", ".events.jsonl"}


def test_the_summary_says_what_was_done(settings: dict[str, Any], tmp_path: Path) -> None:
    summary, other = run(settings, dp=1, tp=2, name="run")
    assert summary["finished"] and other["finished"]
    assert summary["final_loss"] == lines(settings, "run")[-1]
    assert summary["best_loss"] == min(lines(settings, "run"))
    assert summary["eval_loss"] == lines(settings, "run", "eval_loss")[-1]
    assert summary["tokens"] == lines(settings, "run", "tokens")[-1]
    assert summary["mesh"] == "1x2 (dp x tp)" and summary["engine"] == "fsdp2" and summary["precision"] == "fp32"
    assert summary["parameters"] == 1_312_896 and summary["step"] == 4
    assert summary["data"]["documents"] == 30 and summary["data"]["rows"] > 10 and summary["data"]["dropped"] == {}
    said = [event["message"] for event in events(tmp_path / "run", "data")]
    assert re.fullmatch(r"\d\d rows of 12 tokens, 9\d.\d% filled, of 30 documents", said[-1])
    assert summary["seconds"].keys() == {"setup", "train", "eval", "save"}
    assert {"python", "torch", "transformers", "tp2d-fsdp2"} <= summary["versions"].keys()
    assert summary["eval_perplexity"] == pytest.approx(math.exp(summary["eval_loss"]))
    assert summary["tokens"] < summary["positions"] == 4 * 4 * 12 and summary["skipped_steps"] == 0
    assert summary["tokens_per_second"] > summary["label_tokens_per_second"] > 0 and "mfu" not in summary


def test_the_start_is_told_while_it_passes_by_one_rank_alone(settings: dict[str, Any], tmp_path: Path) -> None:
    """From the ranks' meeting to the first step; whoever tokenises says so besides."""
    data = settings["dataset_name"]
    run(settings, dp=2, tp=1, name="run", max_steps=2)
    said = [event["message"] for event in events(tmp_path / "run", "phase")]
    own = [message for message in said if not message.startswith("tokenis")]
    assert own[:3] == ["joining 2 ranks", "finding the files of model builtin:tiny", f"opening the data of {data}"]
    assert own[3:5] == ["waiting until every rank has the same model and data", "loading engine fsdp2"]
    assert own[-3:] == ["restoring the newest checkpoint, if there is one", "the first step", "the first step is done"]
    assert len(own) == len(set(own)), "more ranks than one spoke"


def test_stopped_and_resumed_on_a_mesh_is_bit_for_bit_the_same(settings: dict[str, Any], tmp_path: Path) -> None:
    run(settings, dp=2, tp=2, name="whole")
    ask_to_stop(tmp_path / "parts")
    first = run(settings, dp=2, tp=2, name="parts")
    assert [(part["finished"], part["step"]) for part in first] == [(False, 2)] * 4
    assert not RunFolder(tmp_path / "parts").stop.exists()
    second = run(settings, dp=2, tp=2, name="parts")
    assert [part["finished"] for part in second] == [True] * 4
    for metric in ("loss", "grad_norm", "lr", "tokens", "eval_loss"):
        assert lines(settings, "parts", metric) == lines(settings, "whole", metric)
    counts = [len(events(tmp_path / "parts", kind)) for kind in ("started", "stopped", "resumed")]
    assert counts == [2, 1, 1]


def test_a_run_goes_on_with_other_numbers_of_ranks(settings: dict[str, Any], tmp_path: Path) -> None:
    run(settings, dp=1, tp=1, name="whole")
    ask_to_stop(tmp_path / "parts")
    run(settings, dp=2, tp=2, name="parts")
    run(settings, dp=1, tp=2, name="parts")
    assert lines(settings, "parts") == pytest.approx(lines(settings, "whole"), abs=1e-5)
    assert lines(settings, "parts", "tokens") == lines(settings, "whole", "tokens")


def test_a_stream_of_prompts_on_any_mesh_stopped_and_resumed(settings: dict[str, Any], tmp_path: Path) -> None:
    """Only completions are trained on; a stream of them has the order and the positions of a corpus of known size."""
    rows = [{"prompt": " ".join(WORDS[: 1 + at % 5]), "completion": WORDS[at % 7]} for at in range(30)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings |= {"dataset_name": str(tmp_path / "prompts.jsonl"), "loss_on": "completion", "optimizer": "sgd"}
    settings |= {"streaming": True, "max_steps": 9, "num_epochs": 9, "last_batch": "pad", "learning_rate": 0.1}
    settings |= {"block_tokens": 100, "seq_length": 32}
    whole = run(settings, dp=1, tp=1, name="whole")
    ask_to_stop(tmp_path / "parts")
    run(settings, dp=2, tp=2, name="parts")
    run(settings, dp=2, tp=1, name="parts")
    assert lines(settings, "parts") == pytest.approx(lines(settings, "whole"), abs=1e-5)
    assert lines(settings, "parts", "tokens") == lines(settings, "whole", "tokens")
    assert lines(settings, "parts", "eval_loss") == pytest.approx(lines(settings, "whole", "eval_loss"), abs=1e-5)
    tokenizer = load_tokenizer("builtin:tiny")
    trained = [row for row in rows if not is_held_out(json.dumps(list(row.values()), sort_keys=True), 0.2)]
    epoch = sum(len(tokenizer(row["completion"])["input_ids"]) + 1 for row in trained)
    steps = events(tmp_path / "whole", "epoch")[0]["step"]
    assert lines(settings, "whole", "tokens")[steps - 1] == epoch and whole[0]["step"] == 9


def test_too_few_rows_pass_through_and_are_told(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(MeshError, match=r"3. rows .* fewer than one global batch of 200"):
        run(settings, dp=2, tp=1, name="run", batch_size_per_gpu=100)
    found = events(tmp_path / "run", "failed")
    assert {event["error"] for event in found} == {"TooFewRows"}
    assert "fewer than one global batch of 200" in found[0]["message"] and "spec.py" in found[0]["traceback"]


def test_too_few_held_out_rows_are_a_warning_unless_evaluations_were_asked_for(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    few = settings | {"holdout_percentage": 0.01, "max_steps": 1}
    summary, *_ = run(few, dp=1, tp=1, name="run")
    assert summary["finished"] and "eval_loss" not in summary
    (warning,) = [event["message"] for event in events(tmp_path / "run", "warning")]
    assert warning.startswith("no evaluation, dataset") and "fewer than one global batch of 4" in warning
    with pytest.raises(MeshError, match=r"fewer than one global batch of 4 .* or leave out eval_interval_steps"):
        run(few, dp=1, tp=1, name="asked", eval_interval_steps=1)


def fail_on_rank_1(mesh: Mesh, settings: dict[str, Any]) -> dict[str, Any]:
    if mesh.rank == 1:
        settings = settings | {"dataset_name": settings["dataset_name"] + ".gone"}
    return train_func(settings)


def test_a_failure_on_one_rank_ends_the_others_soon_and_is_named_first(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    sizes = {"tp_size": 1, "dp_size": 2, "name": "run", "timeout_s": 20}
    with pytest.raises(MeshError, match=r"text.jsonl.gone"):
        run_on_mesh(fail_on_rank_1, settings | sizes, dp=2, timeout=60)
    event = events(tmp_path / "run", "failed")[0]
    assert event["rank"] == 1 and "text.jsonl.gone" in event["message"]


def test_a_run_without_a_name_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(MeshError, match=r"a run that is not started by the command line needs a name"):
        run(settings, dp=1, tp=1)


def test_the_number_of_ranks_is_that_of_the_world(settings: dict[str, Any], tmp_path: Path) -> None:
    """A template's dictionary says nothing of the number of workers: Ray's scaling configuration does."""
    template = settings | {"tp_size": 1, "name": "run", "batch_size": 2, "max_steps": 1}
    summaries = run_on_mesh(train, template, dp=2, timeout=60)
    assert summaries[0]["mesh"] == "2x1 (dp x tp)"
