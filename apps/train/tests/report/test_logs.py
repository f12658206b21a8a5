"""What a worker's libraries log reaches the driver's view, from the level that is asked for."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from tp2d_train.report.logs import PACKAGES, logged_as_events, set_log_level
from tp2d_train.report.metrics import read_lines
from tp2d_train.runs.folder import RunFolder


@pytest.fixture(autouse=True)
def _levels() -> Iterator[None]:
    before = {name: logging.getLogger(name).level for name in PACKAGES}
    yield
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


def logged(path: Path, *, level: str, rank: int = 0) -> list[tuple[str, str]]:
    """The kind and text of the events of a worker whose data package logs a line of each level."""
    set_log_level(level)
    logger = logging.getLogger("tp2d_data.tokens.cache")
    with logged_as_events(RunFolder(path), rank=rank):
        for name in ("debug", "info", "warning"):
            getattr(logger, name)("a %s", name)
    logger.warning("after the block")
    return [(event["event"], event["message"]) for event in read_lines(RunFolder(path).events)[0]]


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        ("debug", [("data", "a debug"), ("data", "a info"), ("warning", "a warning")]),
        ("info", [("data", "a info"), ("warning", "a warning")]),
        ("warning", [("warning", "a warning")]),
        ("error", []),
    ],
)
def test_a_log_line_is_an_event_from_its_level_on(tmp_path: Path, level: str, expected: list[tuple[str, str]]) -> None:
    assert logged(tmp_path, level=level) == expected


def test_other_ranks_only_warn(tmp_path: Path) -> None:
    assert logged(tmp_path, level="debug", rank=3) == [("warning", "a warning")]


def test_every_package_of_ours_has_the_level() -> None:
    folders = [folder.name for folder in Path(__file__).parents[4].joinpath("packages").iterdir() if folder.is_dir()]
    assert {name.replace("-", "_") for name in folders if name.startswith("tp2d-")} | {"tp2d_train"} == set(PACKAGES)
