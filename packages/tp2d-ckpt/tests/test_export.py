"""The weights of a checkpoint as safetensors files."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tp2d_ckpt import Checkpointer, find_latest
from tp2d_ckpt.export import export_weights
from tp2d_mesh import Mesh, named_tensor
from tp2d_mesh.testing import run_on_mesh

SHAPES = {"model.a.weight": (7, 5), "model.b.bias": (3,), "optim.a.weight.exp_avg": (7, 5)}


def whole(name: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(len(name))
    return torch.randn(SHAPES[name], generator=generator)


def save(mesh: Mesh, root: Path) -> None:
    tensors = {}
    for name, shape in SHAPES.items():
        tp_dim = 1 if len(shape) == 2 else None
        at = mesh.layout.coordinates(mesh.rank)
        part = whole(name) if tp_dim is None else whole(name).chunk(mesh.layout.tp, 1)[at.tp_rank]
        chunks = part.chunk(mesh.layout.dp)
        local = chunks[at.dp_rank] if at.dp_rank < len(chunks) else part[:0]
        tensors[name] = named_tensor(
            name, local.contiguous(), global_shape=shape, layout=mesh.layout, rank=mesh.rank, tp_dim=tp_dim
        )
    Checkpointer(root, mesh=mesh).save(step=1, tensors=tensors, state={}, rank_state={})


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("run")
    run_on_mesh(save, root, dp=2, tp=2)
    return root


def test_one_file_holds_every_weight_whole_and_no_moment(saved: Path, tmp_path: Path) -> None:
    """Would show the shard of one rank written as the whole tensor."""
    names = export_weights(find_latest(saved), tmp_path)
    found = load_file(tmp_path / "model.safetensors")
    assert sorted(names) == sorted(found) == ["a.weight", "b.bias"]
    for name, tensor in found.items():
        assert torch.equal(tensor, whole(f"model.{name}"))


def test_many_files_have_an_index_and_another_dtype(saved: Path, tmp_path: Path) -> None:
    export_weights(find_latest(saved), tmp_path, dtype=torch.bfloat16, file_bytes=70)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert sorted(index["weight_map"].values()) == [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    assert index["metadata"]["total_size"] == 2 * (35 + 3)
    for name, file in index["weight_map"].items():
        assert torch.equal(load_file(tmp_path / file)[name], whole(f"model.{name}").bfloat16())


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    run_on_mesh(save, tmp_path / "run", dp=1, tp=1)
    info = find_latest(tmp_path / "run")
    file = next(info.path.glob("__0_*"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"is damaged: __0_\d.distcp has checksum"):
        export_weights(info, tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
