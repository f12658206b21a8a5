"""What the tests of several modules use."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tp2d_mesh import Layout, Mesh, build_mesh

from apps.train.tests.folders import save_llama


@pytest.fixture
def mesh() -> Iterator[Mesh]:
    """A 1x1 mesh of this process."""
    mesh = build_mesh(Layout(dp=1, tp=1), device=torch.device("cpu"))
    yield mesh
    mesh.close()


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved Llama of 2 key-value heads and 64 positions, which nobody changes."""
    return save_llama(tmp_path_factory.mktemp("models") / "llama")
