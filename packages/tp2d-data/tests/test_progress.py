import time

import pytest
from tp2d_data import progress
from tp2d_data.progress import told


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(progress, "_SILENT_SECONDS", 0.02)
    monkeypatch.setattr(progress, "_PROGRESS_SECONDS", 0.02)


def test_what_takes_long_is_told_again_and_again(soon):
    said = []
    with told(said.append, "counting"):
        time.sleep(0.3)
    assert len(said) > 1 and set(said) == {"counting, 0 s"}
    before = len(said)
    time.sleep(0.1)
    assert len(said) == before, "it is told of work that has ended"


def test_what_is_quick_is_not_told():
    said = []
    with told(said.append, "counting"):
        pass
    assert said == []


def test_an_error_passes_through_and_ends_it(soon):
    said = []
    with pytest.raises(KeyError), told(said.append, "counting"):
        raise KeyError
    before = len(said)
    time.sleep(0.1)
    assert len(said) == before
