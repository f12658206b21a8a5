"""The command line and the YAML file."""

import shlex
from pathlib import Path

import pytest
from tp2d_train.config import TrainConfig, option_fields
from tp2d_train.fields import text_of
from tp2d_train.options import build_parser, command_line, read_options


def test_only_given_options_are_in_the_result() -> None:
    line = ["--tp-size", "4", "--no-compile", "--learning-rate=1e-4", "--max-grad-norm", "none", "--batch-size", "2"]
    assert read_options(line) == {
        "tp_size": 4,
        "compile": False,
        "learning_rate": 1e-4,
        "max_grad_norm": None,
        "batch_size_per_gpu": 2,
    }


def test_the_command_line_wins_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("tp_size: 4\nbatch_size: 2\nlearning_rate: 1e-4\nmax_grad_norm: null\nruntime_env: {pip: [x]}\n")
    assert read_options(["--config", str(file), "--tp-size", "1", "--batch-size-per-gpu", "3"]) == {
        "tp_size": 1,
        "batch_size_per_gpu": 3,
        "learning_rate": "1e-4",  # text in YAML 1.1, which `TrainConfig` reads
        "max_grad_norm": None,
        "runtime_env": {"pip": ["x"]},
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--tpsize 2", r"unknown option tpsize; did you mean tp_size\?"),
        ("--tp 2", r"unknown option tp"),
        ("--zzz=2", r"unknown option zzz; --help lists all"),
        ("--model_name x", r"option --model_name is not written as it should be"),
        ("train", r"unexpected argument 'train'"),
        ("--tp-size", r"argument --tp-size: expected one argument"),
        ("--tp-size two", r"tp_size must be a whole number, not 'two'"),
        ("--tp-size none", r"tp_size must be a whole number, not 'none'"),
        ("--learning-rate fast", r"learning_rate must be a number, not 'fast'"),
        ("--runtime-env {pip", r"runtime_env must be a JSON object, not '{pip'"),
        ("--config none.yaml", r"--config none.yaml cannot be read: .*No such file"),
    ],
)
def test_slips_are_named(line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_options(line.split())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("tp_sise: 2", r"run.yaml: unknown option tp_sise; did you mean tp_size\?"),
        ("tp_size: two", r"tp_size must be a whole number, not 'two'"),
        ("dataset_weights: [1, x]", r"dataset_weights must be float, not 'x'"),
        ("- tp_size", r"must hold lines like 'tp_size: 2', not list"),
        ("", r"must hold lines like"),
        ("a: [", r"is not YAML"),
    ],
)
def test_slips_in_a_file_are_named(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        TrainConfig(**read_options(["--config", str(file)]))


def test_a_command_line_gives_its_settings_back() -> None:
    given = {"name": "a b", "runtime_env": {"pip": ["it's"]}, "compile": True, "max_grad_norm": None}
    settings = TrainConfig(**given, dataset_name=["a b", "c"], dataset_weights=[3, 1]).as_dict()
    assert read_options(shlex.split(command_line(settings))) == settings


def test_help_tells_every_option_and_both_defaults() -> None:
    text = " ".join(build_parser().format_help().split())
    assert all(f"--{name.replace('_', '-')} " in text or f"--{name.replace('_', '-')}," in text for name in _names())
    assert "peak learning rate (default: 1e-05; built-in models: 0.003)" in text


def test_the_readme_tells_every_option_and_its_default() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    rows = dict(line.removeprefix("| `--").split("`", 1) for line in readme.splitlines() if line.startswith("| `--"))
    assert list(rows) == [name.replace("_", "-") for name in _names()]
    for field in option_fields():
        row, default = rows[field.name.replace("_", "-")], field.metadata["default"]
        assert field.metadata["help"] in row
        assert default in (None, False) or f"`{text_of(default) if isinstance(default, tuple) else default}`" in row


def _names() -> list[str]:
    return list(TrainConfig().as_dict())
