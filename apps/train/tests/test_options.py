"""The command line and the YAML file."""

import dataclasses
import re
from pathlib import Path

import pytest
from tp2d_train.config import TrainConfig, option_fields
from tp2d_train.fields import allowed_types, choices_of, text_of
from tp2d_train.options import build_parser, check_needs, option_groups, read_options


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
        ("--tpsize 2", r"unknown option --tpsize; did you mean --tp-size\?"),
        ("--tp=2", r"unknown option --tp; did you mean --tp-size\?"),
        ("--zzz=2", r"unknown option --zzz; tp2d train --help-all lists all"),
        ("train", r"unexpected argument 'train': options are --name value, see tp2d train --help-all"),
        ("-tp-size 2", r"unexpected argument '-tp-size'"),
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


def test_one_mark_is_as_good_as_the_other(tmp_path: Path) -> None:
    """In the name of an option, not in its value."""
    assert read_options(["--tp_size", "4", "--storage-path=a_b-c"]) == {"tp_size": 4, "storage_path": "a_b-c"}
    file = tmp_path / "run.yaml"
    file.write_text("tp-size: 4\n")
    assert read_options(["--config", str(file)]) == {"tp_size": 4}


@pytest.mark.parametrize("on", ["--compile", "--compile true", "--compile=True", "compile: true", "compile: 'true'"])
@pytest.mark.parametrize("off", ["--no-compile", "--compile false", "--compile=false", "compile: false"])
def test_a_switch_is_on_or_off_however_it_is_written(on: str, off: str, tmp_path: Path) -> None:
    for line, value in {on: True, off: False}.items():
        file = tmp_path / "run.yaml"
        file.write_text(line)
        words = line.split() if line.startswith("-") else ["--config", str(file)]
        assert TrainConfig(**read_options([*words, "--seed", "1"])).compile is value


def test_a_switch_of_three_places() -> None:
    lines = (["--append-eos"], ["--no-append-eos"], ["--append-eos", "none"])
    assert [read_options(line)["append_eos"] for line in lines] == [True, False, None]


def test_resume_takes_a_word_for_the_name() -> None:
    assert read_options(["a", "--max-steps", "3"], command="resume") == {"name": "a", "max_steps": 3}
    assert read_options(["--max-steps", "3", "a"], command="resume") == {"name": "a", "max_steps": 3}


def test_an_option_without_the_one_it_needs_is_refused() -> None:
    """Also where it is given as it is by default: whoever names it wants it read."""
    with pytest.raises(ValueError, match=r"messages_field is read with loss_on assistant only.*: add --loss-on assist"):
        check_needs(TrainConfig(), given={"messages_field"})
    check_needs(TrainConfig(loss_on="assistant"), given={"messages_field", "seed"})
    check_needs(TrainConfig(), given={"seed"})


def test_the_common_options_are_few_and_the_groups_have_names() -> None:
    assert list(option_groups()) == ["Model", "Data", "Mesh", "Optimisation", "Length", "Failure", "The run"]
    assert [field for fields in option_groups().values() for field in fields] == list(option_fields())
    assert 12 <= sum("common" in field.metadata for field in option_fields()) <= 18


def test_help_tells_every_option_and_both_defaults() -> None:
    text = " ".join(build_parser(every=True).format_help().split())
    assert all(f"--{field.name.replace('_', '-')} " in text for field in option_fields())
    assert "peak learning rate (default: 1e-05; built-in models: 0.003)" in text
    assert all(f"{title}:" in text for title in option_groups())


def test_the_readme_has_the_table_of_the_options() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    assert options_table() in readme, f"the table must be:\n{options_table()}"


def options_table() -> str:
    """The options as the README has them."""
    lines = ["| option | default | what it is |", "|---|---|---|"]
    for title, fields in option_groups().items():
        lines += [f"| **{title}** | | |", *map(_row, fields)]
    return "\n".join(lines) + "\n"


def _row(field: dataclasses.Field) -> str:
    flag = f"`--{field.name.replace('_', '-')}`" + (" / `--no-...`" if bool in allowed_types(field) else "")
    default, builtin = field.metadata["default"], field.metadata.get("builtin")
    if isinstance(default, bool):
        value = "on" if default else "off"
    else:
        value = "" if default is None else f"`{text_of(default)}`"
    value += "" if builtin in (None, default) else f"; built-in `{builtin}`"
    choices = [choice for choice in choices_of(field) if not re.search(rf"\b{choice}\b", field.metadata["help"])]
    names = f" ({', '.join(f'`{choice}`' for choice in choices_of(field))})" if choices else ""
    return f"| {flag} | {value} | {field.metadata['help']}{names} |"
