"""The time line shows each start over the time in which it ran."""

from pathlib import Path

import pytest
from tp2d_train.page import timeline
from tp2d_train.page.history import starts_of
from tp2d_train.page.timeline import draw_timeline

from apps.train.tests.page.written import facts, killed_and_resumed, new_run, start


def test_it_says_in_words_what_it_draws(tmp_path: Path) -> None:
    drawn = draw_timeline(facts(killed_and_resumed(tmp_path)), number=1)
    assert drawn is not None
    for picture in (drawn.wide, drawn.narrow):
        assert "start 1: step 0 to 17, ended without a word, as after a kill" in picture
        assert "start 2: step 10 to 40, finished" in picture
        assert all(f"var(--{name})" in picture for name in ("run-1", "ink", "bad", "good"))
    assert 'viewBox="0 0 860 230"' in drawn.wide and 'viewBox="0 0 300 230"' in drawn.narrow


def test_the_time_in_which_it_did_not_run_is_cut_out() -> None:
    events = [
        {"event": "started", "time": 0.0, "step": 0},
        {"event": "step", "time": 50.0, "step": 5},
        {"event": "started", "time": 1e6, "step": 0},
        {"event": "step", "time": 1e6 + 30, "step": 9},
    ]
    assert timeline._offsets(starts_of(events, is_running=False)) == [0.0, 50.0, 80.0]


@pytest.mark.parametrize(
    ("total", "unit"), [(0.0, "seconds"), (119.9, "seconds"), (120.0, "minutes"), (7200.0, "hours")]
)
def test_the_unit_fits_the_time(total: float, unit: str) -> None:
    assert timeline._unit(total)[1] == unit


def test_a_start_without_a_step_is_drawn_and_no_start_is_not(tmp_path: Path) -> None:
    run, record = new_run(tmp_path)
    assert draw_timeline(facts(run), number=0) is None
    start(record)
    assert draw_timeline(facts(run), number=0) is not None
