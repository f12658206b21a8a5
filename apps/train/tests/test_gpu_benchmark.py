"""`benchmarks/gpu.py` as far as a CPU shows it: every loop runs, counts and agrees, and a wrong one is named."""

import importlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
SECONDS = 600  # a minute where nothing else runs


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `--tiny` wrote; it exited with 0."""
    folder = tmp_path_factory.mktemp("gpu")
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), "--tiny", "--output", str(folder / "gpu.md")]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr[-4000:]
    assert "Everything is within its bounds." in (folder / "gpu.md").read_text()
    record: dict[str, Any] = json.loads((folder / "gpu.json").read_text())
    return record


@pytest.mark.timeout(SECONDS)
def test_every_kind_of_loop_has_figures_on_packed_and_unpacked_rows(page: dict[str, Any]) -> None:
    assert [one["workload"]["documents"] for one in page["workloads"]] == [32, None]
    for workload in page["workloads"]:
        rows = workload["rows"]
        assert {row["contender"]["kind"] for row in rows} == {"plain", "compiled", "titan", "ours"}
        for row in rows:
            figures = row["figures"]
            assert len(figures["losses"]) == len(figures["norms"]) == 5
            assert 0 < figures["median_seconds"] <= figures["p90_seconds"]
            assert figures["profile"]["seconds"]["matrix products"] > 0
            assert any("attention" in name for name in figures["profile"]["attention"])


@pytest.mark.timeout(SECONDS)
def test_labels_are_counted_without_the_first_token_of_a_document(page: dict[str, Any]) -> None:
    packed, unpacked = (workload["counts"] for workload in page["workloads"])
    assert packed["positions"] == unpacked["positions"] == 256
    assert unpacked == {"positions": 256, "labels": 254, "attended": 128}
    assert packed["labels"] < 252  # two rows of more than two documents
    assert 32 < packed["attended"] < 128  # long documents have most tokens


@pytest.mark.timeout(SECONDS)
def test_parity_is_checked_on_both_meshes(page: dict[str, Any]) -> None:
    assert [(row["kind"], row["mesh"][:3], row["good"]) for row in page["parity"]] == [
        ("padded", "1x1", True),
        ("packed", "1x1", True),
        ("padded", "1x2", True),
        ("packed", "1x2", True),
    ]


def test_a_loop_that_computes_something_else_or_is_too_slow_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    contenders, report, rows, shapes = (
        importlib.import_module(f"gpu.{name}") for name in ("contenders", "report", "rows", "shapes")
    )
    good = importlib.import_module("gpu.measure").Figures(
        losses=[7.0, 6.0],
        norms=[3.0, 3.0],
        median_seconds=1.0,
        p90_seconds=1.0,
        host_seconds=1.0,
        peak_bytes=None,
        first_seconds=1.0,
        profile=None,
    )
    made = [
        report.Row(contender=contenders.Contender(name="first", kind="plain"), figures=good),
        report.Row(contender=contenders.Contender(name="other", kind="ours"), figures=replace(good, losses=[7.1, 6.0])),
        report.Row(contender=contenders.Contender(name="third", kind="ours"), figures="OutOfMemoryError"),
    ]
    counts = rows.Counts(positions=1, labels=1, attended=1)
    result = report.Result(workload=shapes.TINY_WORKLOADS[0], counts=counts, rows=made)
    (wrong,) = report.failures([result], half=True, judged=False)
    assert "other: loss differs by 1.4e-02" in wrong
    _, missed = report.failures([result], half=True, judged=True)
    assert "1.00 x the best plain loop, target 1.30" in missed
    assert report.failures([replace(result, rows=made[:1])], half=True, judged=True) == []
