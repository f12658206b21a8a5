"""The files of metrics survive a kill at any byte."""

import json
import math
from pathlib import Path

import pytest
from tp2d_train.report.metrics import (
    append_line,
    column,
    cut_back,
    evaluation_metrics,
    perplexity,
    read_lines,
    write_json,
)


def test_lines_come_back_as_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": 1, "loss": 0.1 + 0.2}, {"step": 2, "loss": 1e-300}]
    for line in lines:
        append_line(path, line)
    assert read_lines(path)[0] == lines


def test_a_missing_file_has_no_lines(tmp_path: Path) -> None:
    assert read_lines(tmp_path / "none.jsonl") == ([], 0)


def test_reading_goes_on_where_it_ended_and_waits_for_half_a_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"step": 1}\n{"st')
    records, position = read_lines(path)
    assert records == [{"step": 1}]
    assert read_lines(path, start=position) == ([], position)
    with path.open("ab") as file:
        file.write(b'ep": 2}\n')
    assert read_lines(path, start=position)[0] == [{"step": 2}]


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_line_after_a_cut_off_one_is_whole(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + b'{"step": 2}\n'[:cut])
    append_line(path, {"step": 3})
    records, _ = read_lines(path)
    assert records[0] == {"step": 1} and records[-1] == {"step": 3}
    assert len(records) == (3 if cut == 11 else 2)  # 11 bytes are all of a line but its line feed


def test_cut_back_drops_later_steps_and_half_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "eval_loss": 1.0}\n{"step": 3}\n{"step"')
    assert cut_back(path, step=2) == 1
    assert path.read_text() == '{"step": 1}\n{"step": 2, "eval_loss": 1.0}\n'
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_cutting_back_nothing_makes_no_file(tmp_path: Path) -> None:
    assert cut_back(tmp_path / "metrics.jsonl", step=5) == 0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_null(tmp_path: Path, value: float) -> None:
    """Python writes NaN, which no other JSON reader takes."""
    append_line(tmp_path / "metrics.jsonl", {"step": 1, "loss": value})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": null}\n'


def test_json_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    write_json(path, {"old": 1, "long": "x" * 100})
    write_json(path, {"seconds": {"train": 1.5, "eval": math.nan}})
    assert json.loads(path.read_text()) == {"seconds": {"train": 1.5, "eval": None}}
    assert [file.name for file in tmp_path.iterdir()] == ["summary.json"]


def test_an_evaluation_has_the_perplexity_where_it_is_finite() -> None:
    assert evaluation_metrics(loss=math.log(16), tokens=3)["eval_perplexity"] == pytest.approx(16)
    for loss in (710.0, math.inf, math.nan):
        metrics = evaluation_metrics(loss=loss, tokens=3)
        assert metrics.keys() == {"eval_loss", "eval_tokens"} and perplexity(loss) is None


def test_a_column_skips_lines_without_the_metric() -> None:
    lines = [{"step": 1, "loss": 3.0}, {"step": 1, "eval_loss": 4.0}, {"step": 2, "loss": None}]
    assert column(lines, "loss") == ([1], [3.0])
