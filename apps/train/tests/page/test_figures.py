"""Figures come from the summary, of a run that has not ended from its lines; what nobody knows is absent."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from tp2d_train.page import figures
from tp2d_train.page.figures import Figure

from apps.train.tests.page.written import facts, killed_and_resumed, new_run, start, steps


def firsts(found: Sequence[Figure]) -> dict[str, str | None]:
    return {figure.label: figure.values[0] for figure in found}


def test_a_finished_run_has_the_figures_of_its_summary(tmp_path: Path) -> None:
    run = facts(killed_and_resumed(tmp_path))
    found = firsts(figures.results([run]))
    assert found["Step"] == "40 of 40" and found["Training loss, last"] == "5.750"
    assert found["Training loss, best"] == "5.500" and found["Evaluation loss, last"] == "6.250"
    assert found["Tokens per second"] == "4,057" and found["Time"] == "1:06 min" and found["Skipped steps"] == "1"
    assert found["Starts"] == "2" and found["Steps computed again"] == "at least 7"
    assert "Share of the peak (MFU)" not in found
    assert firsts(figures.identities([run]))["Parameters"] == "1,312,896"
    assert firsts(figures.versions([run]))["python"] == "3.11.7"


def test_a_running_run_has_what_its_lines_say_and_no_more(tmp_path: Path) -> None:
    run, record = new_run(tmp_path)
    start(record)
    steps(record, 1, 4)
    found = firsts(figures.results([facts(run, "running")]))
    assert found["Step"] == "4 of 40" and found["Training loss, last"] == "7.800" and found["State"] == "running"
    assert not {"Training loss, best", "Tokens per second", "Time", "Perplexity"} & found.keys()
    assert figures.shares(facts(run), longest=1.0) == [] and figures.versions([facts(run)]) == []


def test_a_gap_of_one_run_is_a_gap(tmp_path: Path) -> None:
    runs = [facts(killed_and_resumed(tmp_path, "a")), facts(new_run(tmp_path, "b")[0])]
    found = {figure.label: figure.values for figure in figures.results(runs)}
    assert found["Training loss, last"] == ["5.750", None]


def test_documents_have_reasons_and_how_full_rows_are(tmp_path: Path) -> None:
    found = firsts(figures.documents([facts(killed_and_resumed(tmp_path))]))
    assert found["Documents left out"] == "3 (empty)" and found["Rows filled"] == "99.9%"
    assert found["Packing"] == "best_fit" and "Padding" not in found


def test_the_shares_of_two_runs_have_one_scale(tmp_path: Path) -> None:
    run = facts(killed_and_resumed(tmp_path))
    assert figures.total_seconds(run) == 66.0
    assert [round(share.percent, 2) for share in figures.shares(run, longest=120.0)] == [2.5, 50.0, 0.83, 1.67]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.421, "0.42 s"), (12.34, "12.3 s"), (187.2, "3:07 min"), (7509.0, "2:05:09 h")]
)
def test_a_duration_is_readable(seconds: float, text: str) -> None:
    assert figures.clock(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(12, "12 bytes"), (15.1 * 2**20, "15.1 MiB"), (3 * 2**30, "3.0 GiB")])
def test_a_size_is_readable(count: float, text: str) -> None:
    assert figures.size(count) == text
