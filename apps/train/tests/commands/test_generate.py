"""A run's model writes on from a prompt."""

import io
import shutil
from pathlib import Path

import pytest
import torch
from tp2d_train.commands import export, train
from tp2d_train.commands.generate import GenerateOptions, generate, main
from tp2d_train.config import TrainConfig
from tp2d_train.runs.run import find_run
from transformers import AutoModelForCausalLM, AutoTokenizer

from apps.train.tests.command_line import SMALL, write_text


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs `a`, trained until it says its text, and `new`, which has not saved."""
    folder = tmp_path_factory.mktemp("folder")
    write_text(folder, lines=4)
    line = ["--name", "a", "--storage-path", str(folder), "--dataset-name", str(folder / "text.txt")]
    assert train.main([*SMALL, *line, "--num-epochs", "10"]) == 0
    find_run(TrainConfig(name="new", storage_path=str(folder))).start()
    return folder


def written(storage: Path, *line: str, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    code = main([*line, "--storage-path", str(storage)])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out


def test_it_is_what_the_exported_model_says(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Greedy, from the run and from its export: as transformers alone would."""
    line = ["--prompt", "line 1 has", "--max-new-tokens", "5"]
    text = written(storage, "a", *line, capsys=capsys)
    assert export.main(["a", "--storage-path", str(storage), "--output", str(storage / "out")]) == 0
    assert written(storage, str(storage / "out"), *line, capsys=capsys) == text
    model, tokenizer = (kind.from_pretrained(storage / "out") for kind in (AutoModelForCausalLM, AutoTokenizer))
    ids = tokenizer("line 1 has", return_tensors="pt")["input_ids"]
    for _ in range(5):
        with torch.no_grad():
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    assert text.startswith(" some words") and tokenizer.decode(ids[0]).removeprefix("line 1 has") + "\n" == text


def test_a_prompt_may_come_in(
    storage: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = written(storage, "a", "--prompt", "line 1 has", "--max-new-tokens", "5", capsys=capsys)
    monkeypatch.setattr("sys.stdin", io.StringIO("line 1 has"))
    assert written(storage, "a", "--max-new-tokens", "5", capsys=capsys) == text


def test_a_seed_draws_the_same_again(storage: Path) -> None:
    def drawn(seed: int) -> str:
        options = GenerateOptions(name="a", storage_path=str(storage), temperature=1.5, seed=seed, max_new_tokens=8)
        return generate(options, "line")

    assert drawn(1) == drawn(1) != drawn(2)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("b --prompt x", "there is no run 'b' in {here}; "),
        ("new --prompt x", "run 'new' in {here} has no checkpoint: it has not saved yet"),
        ("a --prompt=", "prompt is empty"),
        ("a", "the prompt is empty: give --prompt TEXT, or text on standard input"),
        ("a --prompt x --max-new-tokens 0", "max_new_tokens must be at least 1, not 0"),
        ("a --prompt x --temperature -1", "temperature must be at least 0, not -1.0"),
        ("a --prompt x --max-tokens 3", "unknown option --max-tokens; did you mean --max-new-tokens?"),
    ],
)
def test_a_mistake_is_one_line(
    line: str, message: str, storage: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(" \n"))
    assert main([*line.split(), "--storage-path", str(storage)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and message.format(here=storage) in err


def test_a_prompt_as_long_as_the_model_has_positions_is_refused(llama: Path) -> None:
    """One that leaves some room gets what there is."""
    options = GenerateOptions(name=str(llama), max_new_tokens=200)
    assert isinstance(generate(options, "word " * 8), str)
    with pytest.raises(ValueError, match=r"the prompt has \d+ tokens and the model 64 positions: give a shorter one"):
        generate(options, "word " * 80)


def test_a_chat_needs_a_template(llama: Path, tmp_path: Path) -> None:
    copy = tmp_path / "chat"
    shutil.copytree(llama, copy)
    template = copy / "chat_template.jinja"
    template.unlink(missing_ok=True)
    with pytest.raises(ValueError, match=r"has no chat template: leave out --chat"):
        generate(GenerateOptions(name=str(copy), chat=True), "hello")
    template.write_text("{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}")
    plain = generate(GenerateOptions(name=str(llama), max_new_tokens=6), "<user>hello")
    assert generate(GenerateOptions(name=str(copy), max_new_tokens=6, chat=True), "hello") == plain
