"""`tp2d doctor` as a user starts it: what it prints, and how it ends."""

import re
import time
from pathlib import Path

import pytest
from tp2d_train.commands.doctor import examine, main, summary
from tp2d_train.doctor.finding import Finding, Level

HUB = "hub"  # this machine may have no network: the one line that may warn


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def by_check(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.check: finding for finding in findings}


def test_a_sound_machine(capsys: pytest.CaptureFixture[str]) -> None:
    """Every line is ok but that of the hub, in time, and nothing is left in the storage."""
    start = time.monotonic()
    assert main(["--storage-path", "runs"]) == 0
    assert time.monotonic() - start < 120  # 10 s on an idle machine
    lines = capsys.readouterr().out.splitlines()
    bad = [line for line in lines[:-1] if not line.startswith("ok ") and line.split()[1] != HUB]
    assert not bad
    assert re.fullmatch(r"\d+ ok, (1 warning|0 warnings), 0 problems", lines[-1])
    for check in ("torch", "ray", "tp2d", "devices", "memory", "storage", "lock", "disk", "ranks", "same storage"):
        assert any(line.startswith(f"ok       {check}") for line in lines), check
    assert not list(Path().iterdir()), "the folder is as it was"


def test_storage_that_cannot_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    """The other checks go on, and the ranks are tried without it."""
    Path("file").touch()
    assert main(["--storage-path", "file/runs", "--num-workers", "1"]) == 1
    out = capsys.readouterr().out
    assert re.search(r"^problem  storage +.*file/runs cannot be written: Not a directory; .*--storage-path$", out, re.M)
    assert re.search(r"^ok       ranks +all-reduce over 1 local ranks", out, re.M)
    assert "same storage" not in out
    assert out.splitlines()[-1].endswith(" 1 problem")


def test_no_workers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--num-workers", "0"]) == 2
    assert capsys.readouterr().err == "error: num_workers must be at least 1, not 0\n"


def test_the_hub_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning, no problem: local data and models need no hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found = by_check(list(examine(tmp_path, num_workers=1)))
    assert found["hub"].level is Level.WARNING
    assert "HF_HUB_OFFLINE" in found["hub"].text


def test_the_summary_counts() -> None:
    ok = Finding(check="a", text="fine")
    assert summary([ok, ok, Finding(level=Level.PROBLEM, check="b", text="broken")]) == "2 ok, 0 warnings, 1 problem"
