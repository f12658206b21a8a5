"""The command line's mistakes: one clear line, exit code 2, and no Ray."""

import subprocess
import sys
from pathlib import Path

import pytest
from tp2d_train.commands.train import main

from apps.train.tests.folders import save_config


def python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """What `code` prints in a process of its own, in `folder`."""
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def folder(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the command lines below name; a refused start leaves nothing behind in it."""
    folder = tmp_path_factory.mktemp("folder")
    (folder / "run.yaml").write_text("tp_sise: 2\n")
    (folder / "empty.txt").touch()
    (folder / "text.txt").write_text("some words\n")
    (folder / "ds.json").write_text('{"train_batch_size": 7}')
    (folder / "llama").symlink_to(llama)
    save_config(folder / "mamba", model_type="mamba", hidden_size=32, num_hidden_layers=1)
    save_config(folder / "opt", model_type="opt", hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    return folder


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--num-workers 3", "tp_size 2 x dp_size 1 = 2, but num_workers is 3"),
        ("--engine megatron", "unknown engine 'megatron'"),
        ("--modle-name x", "unknown option modle_name; did you mean model_name?"),
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
        ("--loss-on assistant --messages-field text", "has no chat template, which loss_on 'assistant' needs"),
        ("--loss-on completion", "no field 'prompt'"),
        ("--dataset-weights 1,x", "dataset_weights must be numbers such as 0.7,0.3, not '1,x'"),
        ("--dataset-weights 1,2", "dataset_weights has 2 numbers for 1 datasets"),
        ("--dataset-name text.txt,none.txt", "dataset none.txt does not exist"),
        ("--streaming", "streaming needs max_steps"),
        ("--streaming --max-steps 5 --dataset-name text.txt,empty.txt", "streaming 2 datasets needs dataset_weights"),
        ("--append-eos maybe", "append_eos must be true or false, not 'maybe'"),
        ("--model-name opt --from-scratch --tp-size 1 --tokenizer-name builtin:tiny", "packing=pad"),
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
    assert out == ""
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
    assert out == "" and err.count("\n") == 1
    assert "model_name 'org/model' is neither a local folder nor whole in the hub's cache" in err


def test_a_wrong_option_is_answered_without_torch(tmp_path: Path) -> None:
    """A slip of the pen must not wait for seconds of imports."""
    code = (
        "import sys; from tp2d_train.commands.train import main\nprint(main(['--tpsize', '2']), 'torch' in sys.modules)"
    )
    assert python(code, tmp_path).stdout.strip() == "2 False"


def test_a_mistake_by_the_real_command(folder: Path) -> None:
    """`python -m tp2d_train`, as far as the driver's last check: one line without a traceback, and Ray not imported."""
    line = "--model-name llama --seq-length 32 --tp-size 4"
    code = (
        f"import runpy, sys\nsys.argv[1:] = {line.split()}\n"
        "try: runpy.run_module('tp2d_train', run_name='__main__', alter_sys=True)\n"
        "except SystemExit as end: print(end.code, 'ray' in sys.modules)"
    )
    done = python(code, folder)
    assert done.stdout == "2 False\n"
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "num_key_value_heads=2 is not divisible by tp_size=4" in done.stderr


def test_help_names_every_option(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "tp2d_train", "--help"]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "--tp-size INT" in done.stdout
