"""Ranks that have found different things by the same name: each a copy of its own, as nodes without shared storage."""

import json
import os
import time
from datetime import timedelta
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch.distributed as dist
from tp2d_mesh import Mesh
from tp2d_mesh.testing import MeshError, run_on_mesh
from tp2d_train.config import TrainConfig
from tp2d_train.setup.agreement import check_agreement, model_hash, patient_group
from tp2d_train.setup.model import resolve_model
from tp2d_train.training.worker import train_func

from apps.train.tests.folders import save_llama

TIMEOUT_S = 0.8


def agreement(mesh: Mesh, found: list[dict[str, str]], group: dist.ProcessGroup | None = None) -> str:
    try:
        check_agreement(found[mesh.rank], node=f"node-{mesh.rank}", group=group or mesh.world_group)
    except ValueError as error:
        return str(error)
    return ""


def test_every_rank_names_the_option_and_the_rank_that_differs() -> None:
    one, other = {"model_name": "1", "dataset_name": "2"}, {"model_name": "1", "dataset_name": "3"}
    assert run_on_mesh(agreement, [one, one], dp=2) == ["", ""]
    said = run_on_mesh(agreement, [one, other], dp=2)
    assert said[0] == said[1]
    assert said[0].startswith("dataset_name: rank 1 on node-1 has found something else than rank 0 on node-0; give a")


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """A run of one step on 2x1; `dataset_name` is missing."""
    return {
        "dataset_percentage": 100,
        "holdout_percentage": 20,
        "seq_length": 12,
        "storage_path": str(tmp_path),
        "name": "run",
        "max_steps": 1,
        "tp_size": 1,
        "dp_size": 2,
        "batch_size_per_gpu": 1,
        "device": "cpu",
    }


@pytest.fixture
def copies(tmp_path: Path) -> list[Path]:
    """The same data twice, one for each rank."""
    paths = [tmp_path / name / "text.jsonl" for name in ("node-0", "node-1")]
    for path in paths:
        path.parent.mkdir()
        path.write_text("".join(json.dumps({"text": f"line {at} of some words"}) + "\n" for at in range(40)))
    return paths


def train(mesh: Mesh, settings: dict[str, Any], copies: list[Path]) -> float:
    os.chdir(copies[mesh.rank].parent)  # one name, and behind it what this rank's node has
    return train_func(settings | {"dataset_name": "text.jsonl"})["final_loss"]


def test_a_run_on_unequal_copies_of_its_data_is_refused(settings: dict[str, Any], copies: list[Path]) -> None:
    """Without the check it trains on until it first saves: the ranks' orders differ, so rows are lost and repeated."""
    losses = run_on_mesh(train, settings, copies, dp=2, timeout=120)
    assert losses[0] == losses[1]
    copies[1].write_text(copies[1].read_text().replace("line 7 of", "line 7 off"))
    with pytest.raises(MeshError, match=r"dataset_name or tokenizer_name: rank 1 on .* has found something else than"):
        run_on_mesh(train, settings | {"name": "other"}, copies, dp=2, timeout=120)


def wait_for_a_late_rank(mesh: Mesh) -> tuple[bool, bool]:
    """Whether rank 0's wait ends without the late rank 1 in an ordinary group, and with it in the patient one."""
    dist.barrier(mesh.world_group)  # the groups' members connect within the time-out
    ordinary = dist.new_group(backend="gloo", timeout=timedelta(seconds=TIMEOUT_S))
    gave_up = False
    with patient_group() as patient:
        if mesh.rank == 1:
            time.sleep(3 * TIMEOUT_S)
        else:
            try:
                dist.barrier(ordinary)
            except RuntimeError:
                gave_up = True
        return gave_up, agreement(mesh, [{}, {}], patient) == ""


def test_a_node_may_tokenise_for_longer_than_a_collective_may_take() -> None:
    assert run_on_mesh(wait_for_a_late_rank, dp=2)[0] == (True, True)


def hash_of(name: str | Path) -> str:
    return model_hash(resolve_model(TrainConfig(model_name=str(name))))


def test_the_hash_of_a_model_is_that_of_its_content(tmp_path: Path) -> None:
    """A copy elsewhere has the same; other weights of the same shapes do not, nor does another configuration."""
    save_llama(tmp_path / "a")
    copytree(tmp_path / "a", tmp_path / "b")
    save_llama(tmp_path / "c")  # drawn anew
    same, copy, other = (hash_of(tmp_path / name) for name in "abc")
    assert same == copy != other
    assert hash_of("builtin:tiny") == hash_of("builtin:tiny")
    assert hash_of("builtin:tiny") != hash_of("builtin:small")
