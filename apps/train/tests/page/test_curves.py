"""A picture a metric: all runs in it, restarts and trouble marked, metrics nobody has left out."""

from pathlib import Path

from tp2d_train.page.curves import draw_curves, thinned

from apps.train.tests.page.written import facts, killed_and_resumed, new_run, start, steps


def test_every_metric_that_is_there_has_a_picture(tmp_path: Path) -> None:
    curves = {curve.title: curve for curve in draw_curves([facts(killed_and_resumed(tmp_path))])}
    assert list(curves) == [
        "Training loss",
        "Evaluation loss",
        "Gradient norm, before clipping",
        "Learning rate",
        "Throughput",
        "Peak memory of rank 0",
    ]
    assert "7.95 at step 1, 6 at step 40" in curves["Training loss"].picture
    assert "1.5 at step 1, 1.5 at step 40" in curves["Peak memory of rank 0"].picture, "in GiB"


def test_runs_stand_over_one_another_in_their_colours(tmp_path: Path) -> None:
    runs = [facts(killed_and_resumed(tmp_path, name)) for name in ("a", "b")]
    loss = draw_curves(runs)[0].picture
    assert "var(--run-0)" in loss and "var(--run-1)" in loss and "var(--run-2)" not in loss


def test_a_skipped_step_that_the_run_still_has_is_marked(tmp_path: Path) -> None:
    run, record = new_run(tmp_path)
    start(record)
    steps(record, 1, 5)
    record.event("skipped", step=5, epoch=0, total_steps=40, message="step 5 was skipped")
    assert "var(--bad)" in draw_curves([facts(run)])[0].picture
    start(record, step=3)
    steps(record, 4, 6)
    assert "var(--bad)" not in draw_curves([facts(run)])[0].picture, "step 5 was computed again"


def test_values_that_are_not_finite_are_counted_and_not_drawn(tmp_path: Path) -> None:
    run, record = new_run(tmp_path)
    start(record)
    steps(record, 1, 3)
    steps(record, 4, 5, loss=float("nan"))
    loss = draw_curves([facts(run)])[0]
    assert loss.notes == ["a: 2 lines have values that are not finite"] and "at step 3" in loss.picture


def test_a_run_without_lines_has_no_curves(tmp_path: Path) -> None:
    assert draw_curves([facts(new_run(tmp_path)[0])]) == []


def test_a_long_line_keeps_its_peaks() -> None:
    points = [(step, 0.0) for step in range(100_000)]
    points[54_321] = (54_321, 9.0)
    points[70_001] = (70_001, -9.0)
    few = thinned(points)
    assert len(few) <= 400 and {(54_321, 9.0), (70_001, -9.0)} <= set(few)
    assert few == sorted(few) and thinned(points[:400]) == points[:400]
