"""What a driver says, by the options that choose it."""

from pathlib import Path
from typing import Any

import pytest
from tp2d_train.config import TrainConfig
from tp2d_train.launch.view import live_view, say
from tp2d_train.report.progress import EventLog
from tp2d_train.runs.run import Run

EVENTS = {"phase": "reading", "data": "7 rows", "warning": "no evaluation"}


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({}, ["checking", "reading", "7 rows", "no evaluation"]),
        ({"log_level": "debug"}, ["checking", "reading", "7 rows", "no evaluation"]),
        ({"progress": "quiet"}, ["7 rows", "no evaluation"]),
        ({"log_level": "warning"}, ["no evaluation"]),
    ],
)
def test_the_options_choose_what_is_said_before_and_after_the_start(
    tmp_path: Path, settings: dict[str, Any], shown: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(config=TrainConfig(name="a", storage_path=str(tmp_path), **settings))
    run.start()
    say(run.config)("checking")
    with live_view(run):
        for kind, message in EVENTS.items():
            EventLog(run.folder).write(kind, message=message)
    out = capsys.readouterr().out
    assert [word for word in ("checking", *EVENTS.values()) if word in out] == shown
