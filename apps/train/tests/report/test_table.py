"""Tables for a person."""

import pytest
from tp2d_train.report.table import show_table


def test_in_a_pipe_words_start_and_numbers_end_below_one_another(capsys: pytest.CaptureFixture[str]) -> None:
    show_table(["name", "step"], [("a", "10"), ("longer", "9")], whole=("name",), numbers=("step",))
    assert capsys.readouterr().out.splitlines() == ["name    step", "a         10", "longer     9"]


def test_without_rows_the_heads_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    show_table(["name", "step"], [])
    assert capsys.readouterr().out == "name  step\n"
