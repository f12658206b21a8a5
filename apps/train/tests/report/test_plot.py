"""The picture: what is in it is checked by eye, that it is one and holds both curves by machine."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from tp2d_train.report.plot import HELD_OUT, TRAIN, plot_loss, smooth


def has_color(path: Path, color: str) -> bool:
    wanted = np.array([int(color[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return bool((np.abs(imread(path)[..., :3] - wanted).max(axis=-1) < 0.02).any())


@pytest.mark.parametrize("steps", [1, 10, 500])
def test_both_losses_are_drawn(tmp_path: Path, steps: int) -> None:
    records = [{"step": step, "loss": 8 / (step + 1)} for step in range(1, steps + 1)]
    path = tmp_path / "loss.png"
    assert plot_loss([*records, {"step": steps, "eval_loss": 3.0}], path, title="a run")
    assert imread(path).shape[:2] == (675, 1200)
    assert has_color(path, TRAIN) and has_color(path, HELD_OUT)


def test_without_evaluation_there_is_one_curve(tmp_path: Path) -> None:
    plot_loss([{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}], tmp_path / "loss.png", title="a run")
    assert has_color(tmp_path / "loss.png", TRAIN) and not has_color(tmp_path / "loss.png", HELD_OUT)


def test_nothing_logged_is_no_picture(tmp_path: Path) -> None:
    assert not plot_loss([], tmp_path / "loss.png", title="a run")
    assert not plot_loss([{"step": 1, "loss": None}], tmp_path / "loss.png", title="a run")
    assert not list(tmp_path.iterdir())


def test_smoothing_keeps_a_straight_line_and_both_ends() -> None:
    """Shows a window that looks only back, which shifts the curve."""
    line = [float(value) for value in range(20)]
    assert smooth(line, window=5) == pytest.approx(line)
    assert smooth([0.0, 3.0, 0.0, 3.0], window=3) == [0.0, 1.0, 2.0, 3.0]
