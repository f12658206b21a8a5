"""The list of what happened: starts, ends and trouble apart from what happens all the time."""

from pathlib import Path

from tp2d_train.page.moments import MOST, moments_of
from tp2d_train.report.progress import EventLog

from apps.train.tests.page.written import facts, killed_and_resumed, new_run, start


def test_a_kill_is_in_the_list_though_it_left_no_event(tmp_path: Path) -> None:
    found = moments_of(facts(killed_and_resumed(tmp_path)))
    kinds = [moment.kind for moment in found.important]
    assert kinds == ["started", "cut off", "started", "resumed", "skipped", "finished"]
    assert found.important[1].text == (
        "start 1 ended without a word, as after a kill, after step 17; at least 7 of its steps were computed again"
    )
    assert found.important[2].text == "start 2 at step 10/40: fsdp2 on 2x2 (dp x tp), cpu, fp32"
    assert found.important[3].text == "step 10/40  resumed from step-00000010-aa"
    assert [moment.kind for moment in found.usual] == ["saved"]


def test_a_failure_has_its_traceback(tmp_path: Path) -> None:
    run, record = new_run(tmp_path)
    start(record)
    try:
        raise RuntimeError("out of memory")
    except RuntimeError as error:
        EventLog(run.folder).write_failure(error, rank=1)
    failure = moments_of(facts(run, "failed")).important[-1]
    assert (failure.kind, failure.level) == ("failed", "error") and "rank 1" in failure.text
    assert "Traceback" in failure.details and "out of memory" in failure.text


def test_an_event_of_a_lost_step_says_so(tmp_path: Path) -> None:
    run, record = new_run(tmp_path)
    start(record)
    for step in (5, 9):
        record.event("spike", step=step, epoch=0, total_steps=40, message=f"the loss of step {step} is a spike")
    start(record, step=6)
    found = [moment.is_lost for moment in moments_of(facts(run)).important if moment.kind == "spike"]
    assert found == [False, True]


def test_events_of_another_version_do_not_break_the_list(tmp_path: Path) -> None:
    run, record = new_run(tmp_path)
    start(record)
    record.event("saved", step=1)
    record.event("invented", step=2)
    found = moments_of(facts(run))
    assert "does not read" in found.usual[0].text and "does not know" in found.important[1].text


def test_of_very_many_the_last_are_shown_and_the_rest_counted(tmp_path: Path) -> None:
    run, record = new_run(tmp_path)
    start(record)
    for step in range(MOST + 20):
        record.event("warning", step=step, epoch=0, total_steps=40, message=f"number {step}")
    found = moments_of(facts(run, "running"))
    assert len(found.important) == MOST and found.left_out == 21
    assert found.important[-1].text.endswith(f"number {MOST + 19}")
