"""What a person sees of a run, from the events that its workers write."""

import io
import time
from pathlib import Path

import pytest
from tp2d_train.report.events import describe
from tp2d_train.report.metrics import read_lines
from tp2d_train.report.progress import POLL_SECONDS, EventLog, LiveView
from tp2d_train.runs.folder import RunFolder

AT = {"step": 40, "epoch": 0, "total_steps": 400}
RATES = {"tokens_per_second": 12345.6, "label_tokens_per_second": 12345.6}
STEP = {"event": "step", **AT, "loss": 5.1234, "grad_norm": 1.0234, "lr": 3e-3, "eta_seconds": 35.2, **RATES}
STARTED = {"engine": "fsdp2", "mesh": "2x2 (dp x tp)", "device": "cpu", "precision": "fp32", "parameters": 1312896}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_failure_is_one_line_with_rank_and_cause(tmp_path: Path) -> None:
    try:
        raise ValueError("kv heads 3\nare not divisible by tp 2")
    except ValueError as error:
        EventLog(RunFolder(tmp_path)).write_failure(error, rank=2)
    (event,), _ = read_lines(RunFolder(tmp_path).events)
    line = describe(event)
    assert line == f"rank 2 on {event['host']} failed: ValueError: kv heads 3 are not divisible by tp 2"
    assert "test_a_failure_is_one_line" in event["traceback"]


def test_a_view_follows_from_its_start_to_its_end(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    log, stream = EventLog(folder), io.StringIO()
    log.write("finished", **AT, seconds=1.0, tokens=1)  # of an earlier start
    with LiveView(folder, stream=stream) as view:
        assert view.outcome is None
        log.write("saved", **AT, checkpoint="a", seconds=1.0)
        time.sleep(2 * POLL_SECONDS)
        assert stream.getvalue() == "step 40/400  saved a in 1.0 s\n"
        log.write("finished", **AT, seconds=1.0, tokens=2)
    assert stream.getvalue().splitlines()[1:] == ["step 40/400  finished in 0:01, 2 tokens"]
    assert view.outcome is not None and view.outcome["event"] == "finished"


def test_a_view_waits_for_a_folder_that_does_not_exist_yet(tmp_path: Path) -> None:
    stream = io.StringIO()
    folder = RunFolder(tmp_path / "run")
    with LiveView(folder, stream=stream) as view:
        folder.path.mkdir()
        EventLog(folder).write("stopped", **AT)
    assert view.outcome is not None and view.outcome["event"] == "stopped"


def test_the_first_failure_is_the_outcome_and_is_left_to_the_launcher_to_tell(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    log, stream = EventLog(folder), io.StringIO()
    with LiveView(folder, stream=stream) as view:
        log.write_failure(ValueError("the cause"), rank=1)
        log.write_failure(RuntimeError("connection closed by peer"), rank=0)
    assert view.outcome is not None and (view.outcome["rank"], view.outcome["message"]) == (1, "the cause")
    assert stream.getvalue() == ""


def test_a_failure_that_was_survived_is_shown(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    log, stream = EventLog(folder), io.StringIO()
    with LiveView(folder, stream=stream) as view:
        log.write_failure(RuntimeError("out of memory"), rank=3)
        log.write("started", **AT, **STARTED, places="dp 0: rank 0 on a")
        log.write("finished", **AT, seconds=1.0, tokens=1)
    assert "failed: RuntimeError: out of memory" in stream.getvalue().splitlines()[0]
    assert view.outcome is not None and view.outcome["event"] == "finished"


def test_on_a_terminal_there_is_a_bar_and_other_events_scroll(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    log, stream = EventLog(folder), Terminal()
    with LiveView(folder, stream=stream):
        log.write("saved", **AT, checkpoint="[a]", seconds=1.0)
        log.write(**STEP)
    shown = stream.getvalue()
    assert "step 40/400  saved [a] in 1.0 s" in shown
    assert "loss 5.123  grad 1.02" in shown and "12,346 tok/s" in shown and "\x1b[" in shown


def test_the_options_of_a_view_are_followed(tmp_path: Path) -> None:
    folder, quiet, errors = RunFolder(tmp_path), io.StringIO(), io.StringIO()
    log = EventLog(folder)
    with LiveView(folder, stream=quiet, progress="quiet"), LiveView(folder, stream=errors, log_level="error"):
        log.write("phase", message="starting")
        log.write(**STEP)
        log.write("saved", **AT, checkpoint="a", seconds=1.0)
    assert quiet.getvalue() == "step 40/400  saved a in 1.0 s\n"
    assert errors.getvalue() == ""


def test_a_phase_that_lasts_is_said_again_while_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shows a view that only looks up when there is an event."""
    monkeypatch.setattr("tp2d_train.report.display.PATIENCE_SECONDS", POLL_SECONDS)
    folder, stream = RunFolder(tmp_path), io.StringIO()
    with LiveView(folder, stream=stream):
        EventLog(folder).write("phase", message="starting")
        time.sleep(4 * POLL_SECONDS)
    assert stream.getvalue().splitlines()[1].endswith("still: starting")
