"""What a folder says is read whole, and what is damaged in it is said."""

from pathlib import Path

from tp2d_train.report.metrics import append_line

from apps.train.tests.page.written import IDENTITY, facts, killed_and_resumed, new_run, start


def test_a_resumed_run_has_each_step_once(tmp_path: Path) -> None:
    run = killed_and_resumed(tmp_path)
    append_line(run.folder.metrics, {"step": 17, "loss": 1.25})  # a process that was thought dead
    found = facts(run)
    assert [line["step"] for line in found.steps] == list(range(1, 41))
    assert found.steps[16]["loss"] == 1.25, "the later line holds"
    assert [line["eval_loss"] for line in found.evaluations] == [6.5]
    assert [(saved.step, saved.is_kept) for saved in found.checkpoints] == [(1, False)]
    assert not found.damage and found.config == run.config


def test_a_run_that_has_just_started_knows_what_it_is(tmp_path: Path) -> None:
    run, record = new_run(tmp_path)
    start(record)
    assert facts(run, "running").identity == IDENTITY


def test_damaged_files_are_named_and_the_rest_is_read(tmp_path: Path) -> None:
    run = killed_and_resumed(tmp_path)
    run.folder.config.write_text("a: [")
    run.folder.summary.write_text("{")
    next(run.folder.checkpoints.glob("*/manifest.json")).write_text("{}")
    found = facts(run, "damaged")
    assert found.config is None and found.summary == {} and found.checkpoints == [] and len(found.steps) == 40
    assert [any(word in said for said in found.damage) for word in ("configuration", "summary.json", "manifest")] == [
        True
    ] * 3


def test_lines_that_are_no_events_are_left_out(tmp_path: Path) -> None:
    run, _ = new_run(tmp_path)
    for record in ({"event": "step", "time": 1.0, "step": "x"}, {"event": 3, "time": 1.0}, {"step": 1}, {"event": "a"}):
        append_line(run.folder.events, record)
    append_line(run.folder.metrics, {"loss": 1.0})
    found = facts(run)
    assert list(found.events) == [] and list(found.steps) == []
