"""A request to stop on one rank becomes every rank's at the same step."""

import os
import signal
import threading
from datetime import timedelta
from pathlib import Path

from tp2d_mesh import Mesh
from tp2d_mesh.testing import run_on_mesh
from tp2d_train.training.health import Alarm
from tp2d_train.training.stop import StopVote, stop_requests


def vote_ten_steps(mesh: Mesh, folder: Path, *, rank: int, step: int) -> list[bool]:
    """What every step's vote says on this rank when `rank` gets a SIGTERM in `step`."""
    with stop_requests(folder / ".stop") as requested:
        vote = StopVote(requested, timeout=timedelta(seconds=20))
        answers = []
        for number in range(10):
            if mesh.rank == rank and number == step:
                os.kill(os.getpid(), signal.SIGTERM)
            answers.append(vote.take().stop)
        vote.settle()
    return answers


def test_a_signal_to_one_rank_stops_all_at_the_same_step(tmp_path: Path) -> None:
    """Shows ranks that leave at different steps, which would hang the others."""
    answers = run_on_mesh(vote_ten_steps, tmp_path, rank=1, step=3, dp=2)
    assert answers[0] == answers[1] == [False] * 4 + [True] * 6


def test_a_file_is_a_request(tmp_path: Path) -> None:
    with stop_requests(tmp_path / ".stop") as requested:
        assert not requested()
        (tmp_path / ".stop").touch()
        assert requested()


def test_handlers_are_put_back(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with stop_requests(tmp_path / ".stop") as requested:
        os.kill(os.getpid(), signal.SIGINT)
        assert requested()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_a_thread_takes_no_signals_but_sees_the_file(tmp_path: Path) -> None:
    """Ray runs the train function in a thread, where setting a handler raises."""
    seen: list[bool] = []

    def work() -> None:
        with stop_requests(tmp_path / ".stop") as requested:
            (tmp_path / ".stop").touch()
            seen.append(requested())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [True]


def test_settling_gives_the_last_answer_and_leaves_nothing_under_way(mesh: Mesh) -> None:
    vote = StopVote(lambda: True, timeout=timedelta(seconds=20))
    assert not vote.take().stop
    assert vote.settle().stop and not vote.settle().stop


def vote_with_an_alarm(mesh: Mesh) -> list[Alarm]:
    vote = StopVote(lambda: False, timeout=timedelta(seconds=20))
    vote.take(Alarm.SPIKE if mesh.rank == 0 else Alarm.NONE)
    answers = [vote.take(Alarm.SKIPPED if mesh.rank == 1 else Alarm.NONE).alarm, vote.take().alarm]
    return [*answers, vote.settle().alarm]


def test_an_alarm_of_one_rank_is_that_of_all_a_step_later() -> None:
    """Shows ranks that end a diverged run at different steps: on a GPU their numbers arrive at different times."""
    answers = run_on_mesh(vote_with_an_alarm, dp=2)
    assert answers[0] == answers[1] == [Alarm.SPIKE, Alarm.SKIPPED, Alarm.NONE]
