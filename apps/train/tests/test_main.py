"""The program: one table of commands, found by name, each imported only when it is called."""

import importlib.metadata
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest
from tp2d_train.__main__ import COMMANDS, main

TRAIN = Path(__file__).parents[1]


def test_alone_it_tells_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--help"], ["help"]):
        assert main(words) == 0
        out = capsys.readouterr().out
        assert all(f"  {command.usage} " in out for command in COMMANDS.values()) and out.count("\n") < 20


def test_every_command_is_there_and_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for name, command in COMMANDS.items():
        assert callable(pkgutil.resolve_name(command.main))
        with pytest.raises(SystemExit) as end:
            main([name, "--help"])
        assert end.value.code == 0 and f"usage: tp2d {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("trian", "unknown command trian; did you mean train?"),
        ("exprot first", "unknown command exprot; did you mean export?"),
        ("qqqq", "unknown command qqqq; tp2d --help lists all"),
        ("--tp-size 2", "--tp-size stands where the command does: tp2d train --tp-size ..., see tp2d --help"),
        ("runs --storage ./x", "unknown option --storage; did you mean --storage-path?"),
        ("runs x", "unexpected argument 'x': options are --name value, see tp2d runs --help"),
        ("export", "the following arguments are required: NAME"),
        ("generate a --prompt", "argument --prompt: expected one argument"),
    ],
)
def test_a_slip_is_one_line(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_a_command_by_the_real_program_without_torch(tmp_path: Path) -> None:
    """A slip of the pen, and a list of runs, must not wait for seconds of imports."""
    code = (
        "import sys\nfrom tp2d_train.__main__ import main\n"
        "codes = [main(line.split()) for line in ('resume', 'export a', 'generate a --prompt b', 'runs')]\n"
        "print(codes, 'torch' in sys.modules, 'ray' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "[2, 2, 2, 0] False False", done.stderr
    line = [sys.executable, "-m", "tp2d_train", "--version"]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, f"tp2d {importlib.metadata.version('tp2d-train')}\n")


def test_the_console_script_is_this_program() -> None:
    assert '[project.scripts]\ntp2d = "tp2d_train.__main__:main"\n' in (TRAIN / "pyproject.toml").read_text()
