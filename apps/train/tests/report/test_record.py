"""What rank 0 writes down, and that no other rank does."""

import time
from pathlib import Path

from tp2d_train.report.metrics import read_lines
from tp2d_train.report.record import Record
from tp2d_train.runs.folder import RunFolder


def test_a_line_of_metrics_has_the_time_in_milliseconds(tmp_path: Path) -> None:
    before = time.time()
    Record(RunFolder(tmp_path), active=True).metrics({"step": 1, "loss": 2.5})
    (line,), _ = read_lines(RunFolder(tmp_path).metrics)
    assert list(line) == ["step", "loss", "time"]
    assert before - 1e-3 <= line["time"] <= time.time() + 1e-3 and round(line["time"], 3) == line["time"]


def test_a_phase_is_an_event(tmp_path: Path) -> None:
    Record(RunFolder(tmp_path), active=True).phase("opening the data")
    (event,), _ = read_lines(RunFolder(tmp_path).events)
    assert (event["event"], event["message"]) == ("phase", "opening the data")


def test_another_rank_writes_nothing(tmp_path: Path) -> None:
    record = Record(RunFolder(tmp_path), active=False)
    record.metrics({"step": 1})
    record.phase("opening the data")
    record.event("saved")
    record.summary({"finished": True})
    record.plot(title="a")
    record.resume(step=1)
    assert not list(tmp_path.iterdir())
