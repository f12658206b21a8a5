"""`tp2d train` and `tp2d resume`: a mistake is one clear line, and a run's own settings are taken."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tp2d_ckpt.commit import Manifest, commit, create_directory
from tp2d_train.commands.train import main, resume
from tp2d_train.config import TrainConfig
from tp2d_train.runs.run import find_run

from apps.train.tests.command_line import SMALL, losses, write_text
from apps.train.tests.folders import save_config

CHECKING = "checking the model and the data\n"


def python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """What `code` prints in a process of its own, in `folder`."""
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def folder(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the command lines below name; a refused start leaves nothing behind in it."""
    folder = tmp_path_factory.mktemp("folder")
    (folder / "run.yaml").write_text("tp_sise: 2\n")
    (folder / "chat.yaml").write_text("messages-field: messages\n")
    (folder / "empty.txt").touch()
    (folder / "text.txt").write_text("some words\n")
    (folder / "ds.json").write_text('{"train_batch_size": 7}')
    (folder / "llama").symlink_to(llama)
    save_config(folder / "mamba", model_type="mamba", hidden_size=32, num_hidden_layers=1)
    save_config(folder / "opt", model_type="opt", hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    save_config(folder / "bert", model_type="bert", hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    return folder


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--num-workers 3", "tp_size 2 x dp_size 1 = 2, but num_workers is 3"),
        ("--engine megatron", "unknown engine 'megatron'"),
        ("--modle-name x", "unknown option --modle-name; did you mean --model-name?"),
        ("--tpsize 2", "unknown option --tpsize; did you mean --tp-size?"),
        ("--lr 1e-4", "unknown option --lr; did you mean --learning-rate?"),
        ("--per_device_train_batch_size 4", "--per-device-train-batch-size; did you mean --batch-size-per-gpu?"),
        ("--holdout 5", "unknown option --holdout; did you mean --holdout-percentage?"),
        ("first", "unexpected argument 'first': options are --name value, see tp2d train --help-all"),
        ("--compile maybe", "compile must be true or false, not 'maybe'"),
        ("--messages-field turns", "messages_field is read with loss_on assistant only, and loss_on is all: add"),
        ("--prompt-field prompt", "loss_on completion only, and loss_on is all: add --loss-on completion"),
        ("--loss-on assistant --completion-field a", "is assistant: add --loss-on completion"),
        ("--config chat.yaml", "messages_field is read with loss_on assistant only"),
        ("--config run.yaml", "run.yaml: unknown option tp_sise; did you mean tp_size?"),
        ("--dataset-percentage 0", "dataset_percentage must be above 0"),
        ("--dataset-percentage 101", "dataset_percentage must be above 0 and at most 100, not 101"),
        ("--dataset-percentage nan", "dataset_percentage must be above 0 and at most 100, not nan"),
        ("--seq-length 0", "seq_length must be at least 2, not 0"),
        ("--batch-size -1", "batch_size_per_gpu must be at least 1, not -1"),
        ("--storage-path run.yaml/runs", "cannot be written: Not a directory"),
        ("--resume must --name a", "nothing to resume"),
        ("--model-name ./none", "model_name './none' is a path that does not exist"),
        ("--model-name builtin:huge", "unknown model_name 'builtin:huge'"),
        ("--precision fp16 --device cpu", "precision='fp16' needs a GPU"),
        ("--dataset-name ./none", "dataset ./none does not exist"),
        ("--dataset-name empty.txt", "split 'train' is empty"),
        ("--text-field body", "no field 'body'"),
        ("--seq-length 5000", "seq_length 5000 is longer than the 4096 positions"),
        ("--model-name llama --seq-length 32 --tp-size 4", "num_key_value_heads=2 is not divisible by tp_size=4"),
        (
            "--model-name mamba --from-scratch --tokenizer-name builtin:tiny",
            "model type 'mamba' has no num_attention_heads",
        ),
        ("--packing tight", "unknown packing 'tight': choose pad, concat, best_fit"),
        ("--loss-on answers", "unknown loss_on 'answers': choose all, completion, assistant"),
        ("--loss-on assistant --messages-field text", "field 'text' holds a str, not a list of messages"),
        ("--loss-on completion", "no field 'prompt'"),
        ("--dataset-weights 1,x", "dataset_weights must be numbers such as 0.7,0.3, not '1,x'"),
        ("--dataset-weights 1,2", "dataset_weights has 2 numbers for 1 datasets"),
        ("--dataset-name text.txt,none.txt", "dataset none.txt does not exist"),
        ("--streaming", "streaming needs max_steps"),
        ("--streaming --max-steps 5 --dataset-name text.txt,empty.txt", "streaming 2 datasets needs dataset_weights"),
        ("--append-eos maybe", "append_eos must be true or false, not 'maybe'"),
        ("--model-name opt --from-scratch --tp-size 1 --tokenizer-name builtin:tiny", "packing=pad"),
        (
            "--model-name bert --from-scratch --tp-size 1 --tokenizer-name builtin:tiny",
            "model type 'bert' is not causal: a logit depends on later tokens, so the model would see what it is to "
            "predict. Set is_decoder=True in its configuration",
        ),
        ("--dataset-name text.txt --holdout-percentage 0", "fewer than one global batch of 16"),
        ("--keep-checkpoints 1", "keep_checkpoints must be at least 2, not 1"),
        ("--max-skipped-steps 0", "max_skipped_steps must be at least 1, not 0"),
        ("--on-spike wait", "unknown on_spike 'wait': choose warn, stop"),
        ("--engine autotp --zero-stage 4", "zero_stage=4 is not a ZeRO stage: choose 1 or 2"),
        ("--engine autotp --zero-stage 3", "zero_stage=3 splits the weights over dp as well"),
        ("--engine autotp --zero-stage 0", "zero_stage=0 reports a wrong gradient norm in bf16"),
        ("--engine autotp --compile", "compile=True has not been checked under DeepSpeed AutoTP"),
        ("--engine autotp --deepspeed-config none.json", "deepspeed_config"),
        ("--engine autotp --deepspeed-config ds.json", "train_batch_size"),
    ],
)
def test_a_mistake_is_one_line(
    line: str, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In this process, where the imports are paid once."""
    monkeypatch.chdir(folder)
    capfd.readouterr()
    assert main(line.split()) == 2
    out, err = capfd.readouterr()
    assert out == "" or out.startswith(CHECKING)
    assert err.startswith("error: ") and message in err and err.count("\n") == 1
    assert not Path("runs").exists() or not any(Path("runs").iterdir())


def test_a_hub_that_does_not_answer_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import constants

    monkeypatch.chdir(folder)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens there
    capfd.readouterr()
    assert main(["--model-name", "org/model"]) == 2
    out, err = capfd.readouterr()
    assert out == CHECKING and err.count("\n") == 1
    assert "model_name 'org/model' is neither a local folder nor whole in the hub's cache" in err


def test_a_wrong_option_is_answered_without_torch(tmp_path: Path) -> None:
    """A slip of the pen must not wait for seconds of imports."""
    code = (
        "import sys; from tp2d_train.commands.train import main\nprint(main(['--tpsize', '2']), 'torch' in sys.modules)"
    )
    assert python(code, tmp_path).stdout.strip() == "2 False"


def test_a_mistake_by_the_real_command(folder: Path) -> None:
    """As far as the driver's last check: one line without a traceback, and Ray not imported."""
    line = "--model-name llama --seq-length 32 --tp-size 4"
    code = (
        f"import runpy, sys\nsys.argv[1:] = ['train', *{line.split()}]\n"
        "try: runpy.run_module('tp2d_train', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end: print(end.code, 'ray' in sys.modules)"
    )
    done = python(code, folder)
    assert done.stdout == f"{CHECKING}2 False\n"
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "num_key_value_heads=2 is not divisible by tp_size=4" in done.stderr


def test_a_run_is_resumed_by_its_name_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Mesh, data and length are those of the run; an option that is given overrides, if it may."""
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path, lines=12)
    assert main([*SMALL, "--name", "a", "--max-steps", "2", "--storage-path", "there"]) == 0
    line = ["a", "--storage_path", "there"]
    assert resume([*line, "--max-steps=3", "--save-each-epoch", "false"]) == 0
    assert [line["step"] for line in losses(tmp_path / "there" / "a")] == [1, 2, 3]
    assert main(["--name", "a", "--storage-path", "there"]) == 0
    capfd.readouterr()
    assert resume([*line, "--seed", "7"]) == 2
    assert "cannot be resumed with other settings (seed 42 -> 7)" in capfd.readouterr().err


def test_ones_own_chats_are_all_there_and_what_is_odd_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing is cut to a share of them; an evaluation on one chat and a warm-up without an end are said."""
    monkeypatch.chdir(tmp_path)
    turns = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "Seven of them."}]
    chats = [json.dumps({"messages": [*turns, {"role": "user", "content": f"{at}?"}]}) + "\n" for at in range(120)]
    (tmp_path / "chats.jsonl").write_text("".join(chats))
    line = "--launcher local --tp-size 1 --num-workers 1 --dataset-name chats.jsonl --loss-on assistant"
    assert main([*line.split(), "--max-steps", "1", "--warmup-steps", "50"]) == 0
    out, _ = capfd.readouterr()
    trained, held_out = (int(found) for found in re.findall(r"(\d+) documents", out)[:2])
    assert trained + held_out == 120 and "leaves out" not in out
    assert "warning: warmup_steps 50 leaves none of the run's 1 steps the full learning_rate" in out
    assert "warning: the evaluation has " in out and "raise holdout_percentage, name an eval_dataset" in out


def test_a_resumed_run_joins_the_ranks_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run's launcher says that torchrun's ranks are joined; their number is torchrun's, and no multiple of 2."""
    run = find_run(TrainConfig(name="a", storage_path=str(tmp_path), launcher="local", tp_size=2, num_workers=4))
    run.start()
    path = create_directory(run.folder.checkpoints, step=1)
    commit(path, Manifest(step=1, dp=2, tp=2, engine=None, tensors={}, files={}, versions={}))
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert resume(["a", "--storage-path", str(tmp_path)]) == 2
    assert "tp_size 2 x dp_size 1 = 2, but num_workers is 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "the following arguments are required: NAME"),
        ("frist", "there is no run 'frist' in {here}/runs; did you mean first?"),
        ("zz --storage-path x", "there is no run 'zz' in {here}/x; tp2d runs --storage-path x lists all"),
        ("first", "nothing to resume: run 'first' in {here}/runs has not saved yet"),
        ("first --name second", "unknown option --name; "),
        ("first --resume must", "unknown option --resume; "),
        ("first second", "unexpected argument 'second'"),
    ],
)
def test_what_cannot_be_resumed_is_one_line(
    line: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    find_run(TrainConfig(name="first")).start()
    assert resume(line.split()) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    assert message.format(here=tmp_path) in err


@pytest.mark.parametrize(("flag", "most", "named"), [("--help", 60, False), ("--help-all", 300, True)])
def test_the_short_help_has_the_common_options_and_the_long_one_all(
    flag: str, most: int, named: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main([flag])
    text = capsys.readouterr().out
    assert end.value.code == 0 and text.count("\n") < most
    assert "--tp-size INT" in text and "--help-all" in text
    assert ("--block-tokens" in text) is named
