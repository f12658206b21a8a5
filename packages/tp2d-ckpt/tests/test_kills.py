"""Ranks killed at random instants: the newest checkpoint is complete, and no save that had returned is lost.

python packages/tp2d-ckpt/tests/test_kills.py --kills 100     # prints a line for each kill
"""

import argparse
import os
import random
import signal
import tempfile
import threading
from itertools import count
from pathlib import Path

import pytest
import torch
from tp2d_ckpt import Checkpointer, capture_rng, find_latest, verify
from tp2d_ckpt.commit import MARK, save_directories
from tp2d_ckpt.files import write_atomically
from tp2d_mesh import Layout, NamedTensor, Piece, local_boxes
from tp2d_mesh.testing import MeshError, run_on_mesh

SHAPE = (257, 130)
MESHES = [(2, 1), (1, 2)]


def tensors_of(layout: Layout, rank: int, step: int) -> dict[str, NamedTensor]:
    """A weight and its moment, which any process can compute again for any step."""
    found = {}
    for index, name in enumerate(("model.w", "optim.w.exp_avg")):
        full = torch.rand(SHAPE, generator=torch.Generator().manual_seed(2 * step + index))
        boxes = local_boxes(SHAPE, layout=layout, rank=rank, tp_dim=1)
        pieces = [
            Piece(offsets=b.offsets, tensor=full[b.offsets[0] :, b.offsets[1] :][: b.shape[0], : b.shape[1]].clone())
            for b in boxes
        ]
        found[name] = NamedTensor(name=name, global_shape=SHAPE, pieces=tuple(pieces))
    return found


def resume(mesh, root):
    """Load the newest checkpoint and compare every bit; returns the checkpointer, and the step or 0."""
    checkpointer = Checkpointer(root, mesh=mesh, keep=2)
    info = checkpointer.latest()
    if info is None:
        return checkpointer, 0
    tensors = tensors_of(mesh.layout, mesh.rank, 0)
    assert checkpointer.load(info, tensors).state == {"step": info.step}
    for name, wanted in tensors_of(mesh.layout, mesh.rank, info.step).items():
        for piece, want in zip(tensors[name].pieces, wanted.pieces, strict=True):
            assert torch.equal(piece.tensor, want.tensor), (name, info.step)
    return checkpointer, info.step


def save_until_killed(mesh, root, promised, victims, delay):
    """Resume, then save at every step until the end; each victim kills itself `delay` seconds after it resumed."""
    checkpointer, start = resume(mesh, root)
    if mesh.rank in victims:
        threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
    for step in count(start + 1):
        own = capture_rng(mesh.device)
        tensors = tensors_of(mesh.layout, mesh.rank, step)
        checkpointer.save(step=step, tensors=tensors, state={"step": step}, rank_state=own)
        if mesh.rank == 0:
            write_atomically(promised, str(step).encode())  # the promise must survive the kill as well


def resume_alone(mesh, root):
    return resume(mesh, root)[1]


def kill_once(root: Path, promised: Path, *, chance: random.Random) -> dict[str, object]:
    """Start or resume the run, kill some of its ranks, check what is left, and return what was found."""
    dp, tp = chance.choice(MESHES)
    victims = chance.choice([[0], [1], [0, 1], [0, 1]])
    delay = chance.uniform(0.0, 0.4)
    with pytest.raises(MeshError, match="died with exit code -9"):
        run_on_mesh(save_until_killed, root, promised, victims, delay, dp=dp, tp=tp, fresh=True)
    latest = find_latest(root)
    step = latest.step if latest else 0
    assert step >= int(promised.read_text()), "a save that had returned is lost"
    if latest:
        verify(latest.path)
        assert run_on_mesh(resume_alone, root) == [step]
    leftovers = [path for path in save_directories(root) if not (path / MARK).exists()]
    return {
        "mesh": f"{dp}x{tp}",
        "killed": victims,
        "after": round(delay, 3),
        "step": step,
        "leftovers": len(leftovers),
    }


def test_ten_kills(tmp_path):
    (tmp_path / "promised").write_text("0")
    chance = random.Random(0)
    steps = [kill_once(tmp_path / "root", tmp_path / "promised", chance=chance)["step"] for _ in range(10)]
    assert steps == sorted(steps) and steps[-1] > 0, "the run makes no progress"
    assert len(list((tmp_path / "root").iterdir())) <= 4, "leftovers pile up"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "promised").write_text("0")
        for number in range(options.kills):
            print(number, kill_once(Path(folder) / "root", Path(folder) / "promised", chance=chance), flush=True)
