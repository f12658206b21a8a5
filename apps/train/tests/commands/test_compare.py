"""`tp2d compare` on tiny runs: killed after its first run and called again, it repeats nothing; and what it refuses."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tp2d_train.commands.compare import main

from apps.train.tests.command_line import write_text

TINY = [
    *("--launcher", "local", "--dataset-name", "text.txt", "--dataset-percentage", "100", "--holdout-percentage", "0"),
    *("--seq-length", "16", "--packing", "pad", "--global-batch-size", "4", "--max-steps", "2", "--warmup-steps", "1"),
]
MESHES = ["--meshes", "1x1,2x1,1x3", "--engines", "fsdp2", "--name", "c"]


def rows(folder: Path) -> dict[str, Any]:
    """The rows of the JSON by their names; none before it is there."""
    file = folder / "comparison.json"
    return {row["name"]: row for row in json.loads(file.read_text())["rows"]} if file.exists() else {}


def kill_when(folder: Path, ready: Callable[[], bool], *, line: list[str]) -> None:
    """Starts the command in `folder` and ends it by SIGKILL once `ready`."""
    command = [sys.executable, "-m", "tp2d_train", "compare", *line]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        end = time.monotonic() + 120
        while not ready():
            assert process.poll() is None, process.stderr and process.stderr.read()
            assert time.monotonic() < end
            time.sleep(0.02)
        process.kill()


def stamps(folder: Path) -> dict[str, int]:
    """When each file of a run was written."""
    return {file.name: file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the comparison was killed when its first run had finished."""
    folder = tmp_path_factory.mktemp("killed")
    write_text(folder, lines=12)
    where = folder / "runs" / "c"
    kill_when(folder, lambda: rows(where).get("fsdp2-1x1", {}).get("state") == "finished", line=[*MESHES, *TINY])
    return folder


def test_a_killed_comparison_goes_on_and_repeats_nothing(
    killed: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """By its name alone. The mesh that cannot be was found out before anything ran, and is a row with its reason."""
    monkeypatch.chdir(killed)
    where = killed / "runs" / "c"
    assert {name: row["state"] for name, row in rows(where).items()} == {
        "fsdp2-1x1": "finished",
        "fsdp2-2x1": "waiting",
        "fsdp2-1x3": "refused",
    }
    first = stamps(where / "fsdp2-1x1")
    assert main(["--name", "c"]) == 0
    assert stamps(where / "fsdp2-1x1") == first, "a run that has finished is read only"
    done = rows(where)
    assert [done[name]["state"] for name in done] == ["finished", "finished", "refused"]
    assert "num_attention_heads=8 is not divisible by tp_size=3" in done["fsdp2-1x3"]["reason"]
    assert done["fsdp2-2x1"]["steps"] == 2 and done["fsdp2-2x1"]["micro_batches"] == 1
    assert done["fsdp2-1x1"]["micro_batches"] == 2, "accumulation makes up for dp"
    assert done["fsdp2-2x1"]["planned_memory_bytes"] > 0 and done["fsdp2-2x1"]["sent_bytes"]["dp"] > 0
    out = capfd.readouterr().out
    assert "[1 of 2] fsdp2-1x1\nit has finished before\n" in out and "must be within 1e-05: they are" in out
    assert "fsdp2-1x3 refused: num_attention_heads" in (where / "comparison.md").read_text()
    assert (where / "compare.png").read_bytes().startswith(b"\x89PNG")


def test_losses_at_equal_tokens_are_those_of_one_process(killed: Path) -> None:
    """A batch that depends on dp, an accumulation that does not make up for it, a mean of means: each would show."""
    difference = rows(killed / "runs" / "c")["fsdp2-2x1"]["loss_difference"]
    assert difference is not None and difference < 1e-5


def test_it_goes_on_with_its_own_settings_only(
    killed: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(killed)
    assert main([*MESHES, *TINY, "--seed", "7"]) == 2
    err = capfd.readouterr().err
    assert err.startswith("error: comparison 'c' cannot go on with other settings (seed 42 -> 7)")
    assert err.count("\n") == 1


def test_a_run_that_fails_is_a_row_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The processes of the runs end at once, as where an interpreter cannot start; each has its row."""
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path, lines=12)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert main([*MESHES, *TINY]) == 1
    err = capfd.readouterr().err
    assert "error: 2 of 3 runs failed (fsdp2-1x1, fsdp2-2x1); again with: tp2d compare --name c" in err
    found = rows(tmp_path / "runs" / "c")
    assert found["fsdp2-2x1"]["state"] == "failed" and "ended with exit code 1" in found["fsdp2-2x1"]["reason"]
    assert not (tmp_path / "runs" / "c" / "compare.png").exists(), "there is nothing to draw"


def test_ctrl_c_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """During the first run; the others are not started."""
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path, lines=12)
    where = tmp_path / "runs" / "c"

    def interrupt() -> None:
        while not (where / ".next.yaml").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert main([*MESHES, *TINY]) == 128 + signal.SIGINT
    thread.join()
    out = capfd.readouterr().out
    assert out.endswith("the comparison has stopped, go on with: tp2d compare --name c\n") and "[2 of 2]" not in out
    assert rows(where)["fsdp2-1x1"]["state"] == "waiting"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--tp-size 2", "tp_size is not an option of a comparison: give --meshes"),
        ("--engine=autotp", "engine is not an option of a comparison: give --engines"),
        ("--gradient_accumulation_steps 2", "give --global-batch-size, from which it follows"),
        ("--resume must", "give --name: a comparison that is there goes on"),
        ("--mesh 1x1", "unknown option --mesh; did you mean --meshes?"),
        ("--meshes 2", "'2', which is no dp x tp such as 2x1"),
        ("--engines all", "unknown engines 'all': choose fsdp2, autotp"),
        ("--messages-field turns", "messages_field is read with loss_on assistant only"),
        ("--name a/b", "name 'a/b' cannot name a folder"),
        ("--name other", "exists and is no comparison: choose another --name"),
        ("--meshes 1x3 --launcher local", "none of the 2 runs can work: num_attention_heads=8 is not divisible"),
        ("--config run.yaml --name a", "none of the 4 runs can work: dataset ./none does not exist"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    line: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "other").mkdir(parents=True)
    (tmp_path / "runs" / "other" / "file").touch()
    (tmp_path / "run.yaml").write_text("engine: autotp\ntp_size: 2\ndp_size: 1\ndataset_name: ./none\nresume: must\n")
    assert main(line.split()) == 2
    err = capfd.readouterr().err
    assert err.startswith("error: ") and message in err and err.count("\n") == 1
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["other"]


def test_ranks_of_torchrun_are_refused(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Its runs would all join those ranks."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["--launcher", "local"]) == 2
    assert "without torchrun or srun" in capfd.readouterr().err


def test_a_wrong_option_is_answered_without_torch() -> None:
    wrong = "print(main(['--meshes', '2']), 'torch' in sys.modules)"
    code = f"import sys; from tp2d_train.commands.compare import main\n{wrong}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "2 False\n"
