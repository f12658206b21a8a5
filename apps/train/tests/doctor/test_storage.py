"""The storage: nothing is left behind, and what driver and workers do not share is found."""

from pathlib import Path

import pytest
from tp2d_train.doctor.finding import Level
from tp2d_train.doctor.storage import DRIVER, check_storage, leave_mark, scratch_folder, sees_mark, shared


def test_a_scratch_folder_leaves_nothing(tmp_path: Path) -> None:
    with scratch_folder(tmp_path / "a" / "b") as folder:
        assert {finding.level for finding in check_storage(folder)} == {Level.OK}
    assert not list(tmp_path.iterdir())


def test_a_storage_in_use_stays(tmp_path: Path) -> None:
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    with scratch_folder(tmp_path / "runs"):
        pass
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["mine"]


@pytest.mark.parametrize("saw", [True, False])
def test_a_worker_with_another_storage(tmp_path: Path, saw: bool) -> None:
    """Shows a node whose folder of the same name is its own: its shards would be lost to the others."""
    leave_mark(tmp_path, "rank-0")
    whole = shared(tmp_path, workers={"rank-0": True}, who="local ranks")
    assert (whole.level, whole.text) == (Level.OK, "the driver and 1 local ranks see each other's files")
    torn = shared(tmp_path, workers={"rank-0": True, "rank-1": saw}, who="local ranks")
    assert torn.level is Level.PROBLEM
    assert torn.text.startswith("rank-1: ")


def test_a_mark_of_another_content_is_not_seen(tmp_path: Path) -> None:
    leave_mark(tmp_path, DRIVER)
    assert sees_mark(tmp_path, DRIVER)
    (tmp_path / f"mark-{DRIVER}").write_text("something else")
    assert not sees_mark(tmp_path, DRIVER)
