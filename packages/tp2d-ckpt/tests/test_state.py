"""The random state is stored in a file without pickled code, and is restored exactly."""

import random

import numpy as np
import pytest
import torch
from tp2d_ckpt import capture_rng, restore_rng

CPU = torch.device("cpu")


def draw():
    return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(3).tolist()


def test_every_generator_goes_on_where_it_was(tmp_path):
    draw()  # leaves half a pair of Gaussians in Python's and NumPy's generators, which are a part of the state
    torch.save(capture_rng(CPU), tmp_path / "rng.pt")
    expected = draw(), draw()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    assert draw() != expected[0]
    restore_rng(torch.load(tmp_path / "rng.pt", weights_only=True), CPU)
    assert (draw(), draw()) == expected


def test_a_state_is_not_tied_to_what_happens_after_it():
    state = capture_rng(CPU)
    expected = draw()
    restore_rng(state, CPU)
    assert draw() == expected
    restore_rng(state, CPU)
    assert draw() == expected


def test_another_device_is_refused():
    with pytest.raises(ValueError, match="taken on cpu and this run is on cuda"):
        restore_rng(capture_rng(CPU), torch.device("cuda"))
