"""Events become starts: where each began and ended, and which of its steps the run still has."""

from typing import Any

from tp2d_train.page.history import CUT_OFF, RUNNING, starts_of


def event(kind: str, time: float, **values: Any) -> dict[str, Any]:
    return {"event": kind, "time": time, **values}


KILLED = [
    event("phase", 1.0, message="joining 2 ranks"),
    event("started", 2.0, step=0),
    event("step", 3.0, step=10),
    event("saved", 4.0, step=10),
    event("step", 5.0, step=17),
    event("phase", 90.0, message="joining 2 ranks"),
]
RESUMED = [
    event("started", 100.0, step=10),
    event("resumed", 100.0, step=10, checkpoint="step-00000010-aa"),
    event("step", 101.0, step=20),
]
END = event("finished", 102.0, step=20)


def test_a_killed_start_ends_with_its_last_event_and_has_lost_steps() -> None:
    """The set-up of the next start, long after the kill, is none of its time."""
    first, second = starts_of([*KILLED, *RESUMED, END], is_running=False)
    assert (first.began, first.ended, first.end, first.last_step) == (2.0, 5.0, CUT_OFF, 17)
    assert (first.kept_until, first.lost) == (10, 7)
    assert [first.has_kept(one) for one in first.events] == [True, True, False]
    assert (second.step, second.resumed, second.end, second.lost) == (10, "step-00000010-aa", "finished", 0)


def test_a_start_of_a_running_run_runs_and_an_earlier_one_was_cut_off() -> None:
    assert [one.end for one in starts_of([*KILLED, *RESUMED], is_running=True)] == [CUT_OFF, RUNNING]
    assert [one.end for one in starts_of([*KILLED, *RESUMED], is_running=False)] == [CUT_OFF, CUT_OFF]


def test_the_first_failure_ends_a_start() -> None:
    """The other ranks fail because the first one did, up to a time-out later."""
    failures = [event("failed", 6.0, rank=1), event("failed", 66.0, rank=0)]
    (only,) = starts_of([*KILLED[:5], *failures], is_running=False)
    assert (only.end, only.ended, len(only.events)) == ("failed", 6.0, 4)


def test_steps_that_two_restarts_went_behind_count_against_the_lowest() -> None:
    third = [event("started", 200.0, step=5), event("step", 201.0, step=30)]
    starts = starts_of([*KILLED, *RESUMED, *third], is_running=False)
    assert [one.kept_until for one in starts] == [5, 5, None]


def test_without_a_start_there_is_none() -> None:
    assert starts_of([event("phase", 1.0), event("failed", 2.0)], is_running=True) == []
