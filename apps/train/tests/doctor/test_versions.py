"""The versions: those tested are the constraints of the repository, and others are said."""

import re
from pathlib import Path

import pytest
from tp2d_train.doctor.finding import Finding, Level
from tp2d_train.doctor.versions import TESTED, check_versions

CONSTRAINTS = Path(__file__).parents[4] / "constraints.txt"


def found(**tested: str) -> dict[str, Finding]:
    return {finding.check: finding for finding in check_versions(tested)}


def test_the_tested_versions_are_the_constraints() -> None:
    """Shows a table that was not changed with the constraints: users would be told versions that nobody tested."""
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", CONSTRAINTS.read_text(), re.M))
    assert TESTED.items() <= pins.items()


def test_these_packages_are_fine() -> None:
    assert {finding.level for finding in check_versions()} == {Level.OK}


def test_another_version_than_the_tested_one() -> None:
    torch = found(torch="1.0.0")["torch"]
    assert torch.level is Level.WARNING
    assert torch.text.endswith("tested with 1.0.0")
    assert torch.mend == "if something fails: pip install 'torch==1.0.0'"


def test_a_package_that_is_missing() -> None:
    missing = found(**{"no-such-package": "1.0"})["no-such-package"]
    assert (missing.level, missing.text) == (Level.PROBLEM, "not installed")


def test_a_version_below_what_the_packages_ask_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older rich in front of the installed one, as another environment's packages on the path."""
    folder = tmp_path / "rich-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: rich\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    rich = found(rich="15.0.0")["rich"]
    assert rich.level is Level.PROBLEM
    assert rich.text == "1.0, and tp2d needs >=13"
