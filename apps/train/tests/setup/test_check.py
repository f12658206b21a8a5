"""What the driver refuses before a worker starts."""

from pathlib import Path
from typing import Any

import pytest
from tp2d_train.config import TrainConfig
from tp2d_train.setup.check import check

from apps.train.tests.folders import save_config, save_llama

FROM_SCRATCH = {"from_scratch": True, "tokenizer_name": "builtin:tiny"}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refused(message: str, **settings: Any) -> None:
    with pytest.raises(ValueError, match=message):
        check(TrainConfig(**settings), progress=print)
    assert not any(Path("runs").iterdir()), "a refused start leaves nothing behind"


def test_the_built_in_job_passes() -> None:
    said: list[str] = []
    run = check(TrainConfig(), progress=said.append)
    assert run.previous is None and run.warnings == ()
    assert said[0] == "checking the model and the data"


def test_a_saved_model_and_a_text_file_pass(llama: Path) -> None:
    Path("text.txt").write_text("one line\nand another\n")
    Path("held.txt").write_text("a third line\n")
    settings = {"dataset_name": "text.txt", "eval_dataset": "held.txt", "packing": "pad", "last_batch": "pad"}
    run = check(TrainConfig(model_name=str(llama), seq_length=32, **settings), progress=print)
    found = run.config.dataset_name, run.config.eval_dataset
    assert found == tuple((str(Path(name).absolute()),) for name in ("text.txt", "held.txt")), "workers run elsewhere"


def test_rows_longer_than_the_models_positions(llama: Path) -> None:
    refused(r"seq_length 65 is longer than the 64 positions of .*llama", model_name=str(llama), seq_length=65)


def test_heads_that_do_not_divide(llama: Path) -> None:
    refused(r"num_key_value_heads=2 .* tp_size=4", model_name=str(llama), seq_length=32, tp_size=4)


def test_a_model_without_attention_heads(tmp_path: Path) -> None:
    folder = save_config(tmp_path / "mamba", model_type="mamba", hidden_size=32, num_hidden_layers=1)
    refused(r"'mamba' has no num_attention_heads.* use tp_size=1", model_name=str(folder), **FROM_SCRATCH)


def test_a_model_that_is_no_causal_language_model(tmp_path: Path) -> None:
    folder = save_config(tmp_path / "clip", model_type="clip")
    settings = {"model_name": str(folder), "seq_length": 32, **FROM_SCRATCH}
    refused(
        r"model .*clip cannot be built as a causal language model: Unrecognized [^\n]*AutoModelForCausalLM.$",
        **settings,
    )


def test_an_attention_that_is_not_there() -> None:
    refused(r"cannot be built .*attn_implementation=\"nope\"", attn_implementation="nope")


def test_too_few_rows_for_a_step() -> None:
    """The text is small and here, so the driver counts its rows before anything is started."""
    Path("text.txt").write_text("a line\n" * 7)
    settings = {"dataset_name": "text.txt", "dataset_percentage": 100, "holdout_percentage": 0, "packing": "pad"}
    refused(r"text.txt: 7 rows to train on, .* fewer than one global batch of 16 = batch_size_per_gpu 8", **settings)
    message = r"text.txt gives 7 rows .* global_batch_size 8 = dp_size 2 x .* 2 x gradient_accumulation_steps 2: lower"
    refused(message, **settings, batch_size=2, gradient_accumulation_steps=2)
    run = check(TrainConfig(**settings, batch_size=3, warmup_steps=0), progress=print)
    assert run.warnings == (), "one step"


def test_a_warm_up_longer_than_the_run() -> None:
    Path("text.txt").write_text("a line\n" * 7)
    settings = {"dataset_name": "text.txt", "dataset_percentage": 100, "holdout_percentage": 0, "packing": "pad"}
    run = check(TrainConfig(**settings, batch_size=1, num_epochs=2, warmup_steps=6), progress=print)
    assert run.warnings == (
        "warmup_steps 6 leaves none of the run's 6 steps the full learning_rate 0.003: "
        "lower warmup_steps, or train longer",
    )
    assert f"\nwarning: {run.warnings[0]}\n" in run.start_message()


def test_an_unknown_dataset() -> None:
    refused(r"dataset ./none does not exist", dataset_name="./none")


def test_an_unknown_field() -> None:
    refused(r"no field 'body'; it has text", text_field="body")


def test_an_empty_dataset() -> None:
    Path("empty.txt").touch()
    refused(r"empty.txt: split 'train' is empty", dataset_name="empty.txt")


def test_a_tokenizer_that_is_not_there() -> None:
    refused(r"tokenizer ./none: no such folder", tokenizer_name="./none")


def test_a_tokenizer_with_more_tokens_than_the_model(tmp_path: Path) -> None:
    small = save_llama(tmp_path / "small", vocab_size=100)
    refused(r"the tokenizer has 4096 tokens and the model's vocab_size is 100", model_name=str(small), seq_length=32)


def test_a_precision_that_the_cpu_does_not_have() -> None:
    refused(r"precision='fp16' needs a GPU", precision="fp16", device="cpu")


def test_the_options_of_an_engine_are_refused_before_a_model_is_looked_for() -> None:
    refused(r"zero_stage=3", engine="autotp", zero_stage=3, model_name="./none")
