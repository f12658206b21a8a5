"""Plain lines and the bar, by a clock that the test moves."""

import io

import pytest
from tp2d_train.report.display import Bar, Lines, open_display

from apps.train.tests.report.watch import Watch

AT = {"step": 40, "epoch": 0, "total_steps": 400}
STEP = {"event": "step", **AT, "loss": 5.1234, "grad_norm": 1.0234, "lr": 3e-3, "eta_seconds": 35.2}
SAVED = {"event": "saved", **AT, "checkpoint": "[a]", "seconds": 1.0}
WARNING = {"event": "warning", **AT, "message": "look"}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Watch:
    watch = Watch()
    monkeypatch.setattr("tp2d_train.report.display.time", watch)
    return watch


def phase(message: str, **place: int) -> dict:
    return {"event": "phase", "message": message, **place}


def test_a_phase_is_a_line_with_the_seconds_since_the_view_began(time: Watch) -> None:
    lines = Lines(stream := io.StringIO())
    time.sleep(3.12)
    lines.show(phase("starting 4 workers"))
    time.sleep(9.3)
    lines.show(phase("opening the data"))
    lines.show(STEP)
    assert stream.getvalue().splitlines() == [
        "[ 3.1 s] starting 4 workers",
        "[12.4 s] opening the data",
        "step 40/400  loss 5.123  grad 1.02  lr 3.0e-03  ETA 0:35",
    ]


def pass_time(lines: Lines, time: Watch, seconds: int) -> None:
    for _ in range(seconds):
        time.sleep(1.0)
        lines.tick()


def test_a_phase_that_lasts_is_said_again(time: Watch) -> None:
    """Shows a silence at the start, and a log that is full of it."""
    lines = Lines(stream := io.StringIO())
    lines.show(phase("starting"))
    pass_time(lines, time, 3)
    lines.show({"event": "data", "message": "12 rows"})  # beside the phase, which goes on
    pass_time(lines, time, 60)
    said = ["[ 0.0 s] starting", "12 rows", "[ 5.0 s] still: starting", "[15.0 s] still: starting"]
    assert stream.getvalue().splitlines() == [*said, "[35.0 s] still: starting", "[55.0 s] still: starting"]


@pytest.mark.parametrize("end", [STEP, phase("the first step is done", **AT), {"event": "stopped", **AT}])
def test_a_phase_that_has_ended_is_not_said_again(time: Watch, end: dict) -> None:
    lines = Lines(stream := io.StringIO())
    lines.show(phase("the first step"))
    lines.show(end)
    pass_time(lines, time, 60)
    assert len(stream.getvalue().splitlines()) == 2


def test_a_phase_that_counts_has_a_line_every_few_seconds_and_at_debug_all(time: Watch) -> None:
    lines, all_lines = Lines(some := io.StringIO()), Lines(every := io.StringIO(), log_level="debug")
    for number in range(1, 41):
        time.sleep(0.5)
        lines.show(phase(f"loading weights: {number} of 40 files"))
        all_lines.show(phase(f"loading weights: {number} of 40 files"))
    counts = [line.split(": ")[1] for line in some.getvalue().splitlines()]
    assert counts == ["1 of 40 files", "11 of 40 files", "21 of 40 files", "31 of 40 files"]
    assert len(every.getvalue().splitlines()) == 40
    lines.show(phase("restoring"))
    assert some.getvalue().splitlines()[-1] == "[20.0 s] restoring"


def test_quiet_leaves_out_steps_and_phases(time: Watch) -> None:
    lines = Lines(stream := io.StringIO(), quiet=True)
    for event in (phase("starting"), STEP, SAVED, WARNING):
        lines.show(event)
        pass_time(lines, time, 10)
    assert stream.getvalue().splitlines() == ["step 40/400  saved [a] in 1.0 s", "step 40/400  warning: look"]


def test_a_level_leaves_out_what_is_less_important(time: Watch) -> None:
    lines = Lines(stream := io.StringIO(), log_level="warning")
    for event in (phase("starting"), STEP, SAVED, WARNING):
        lines.show(event)
        pass_time(lines, time, 10)
    assert stream.getvalue().splitlines() == ["step 40/400  warning: look"]


def test_a_bar_shows_the_phases_then_the_steps_and_other_events_scroll() -> None:
    bar = Bar(stream := Terminal())
    bar.show(phase("loading [a]: 12 of 40 files"))
    bar._live.refresh()
    assert "s] loading [a]: 12 of 40 files" in stream.getvalue() and "0/" not in stream.getvalue()
    bar.show(SAVED)
    bar.show({**STEP, "tokens_per_second": 12345.6, "label_tokens_per_second": 12345.6})
    bar.close()
    shown = stream.getvalue()
    assert "step 40/400  saved [a] in 1.0 s" in shown
    assert "40/400" in shown and "loss 5.123  grad 1.02" in shown and "12,346 tok/s" in shown and "\x1b[" in shown
    assert "loading" not in shown.rpartition("40/400")[2]


def test_a_bar_goes_back_to_phases_when_the_run_starts_again() -> None:
    bar = Bar(stream := Terminal())
    bar.show(STEP)
    bar.show(phase("the first step is done", **AT))  # this one is the bar's own
    assert bar._shown is bar._steps
    bar.show(phase("joining 4 ranks"))
    bar.close()
    assert "joining 4 ranks" in stream.getvalue()


def test_the_form_follows_the_options() -> None:
    def form(stream: io.StringIO, progress: str, log_level: str = "info") -> str:
        display = open_display(stream, progress=progress, log_level=log_level)
        display.close()
        return type(display).__name__

    assert form(Terminal(), "auto") == form(io.StringIO(), "bar") == form(Terminal(), "bar", "error") == "Bar"
    assert form(io.StringIO(), "auto") == form(Terminal(), "lines") == form(Terminal(), "quiet") == "Lines"
    assert form(Terminal(), "auto", "warning") == "Lines"


@pytest.mark.parametrize("columns", ["80", "110"])
def test_on_any_terminal_the_step_and_all_metrics_are_there(monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    """Shows a bar that takes the room of the numbers."""
    monkeypatch.setenv("COLUMNS", columns)
    bar = Bar(stream := Terminal())
    bar.show({**STEP, "tokens_per_second": 13018.0, "label_tokens_per_second": 1204.0})
    bar.close()
    shown = stream.getvalue()
    assert "40/400" in shown and "(1,204 labels/s)" in shown and "ETA 0:35" in shown and "…" not in shown
