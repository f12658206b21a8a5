"""What a save costs, and what its checksums add: python packages/tp2d-ckpt/tests/measure_save.py --megabytes 512"""

import argparse
import hashlib
import os
import tempfile
import time
import zlib
from pathlib import Path

import torch
from tp2d_ckpt import Checkpointer
from tp2d_ckpt.commit import record_files
from tp2d_ckpt.dcp import save_tensors
from tp2d_mesh import NamedTensor, Piece
from tp2d_mesh.testing import run_on_mesh

MB = 1e6


def tensors_of(mesh, megabytes):
    """Eight matrices, split over tp by columns."""
    rows = int(megabytes * MB) // 8 // 4 // 1024
    width = 1024 // mesh.layout.tp
    pieces = [Piece(offsets=(0, mesh.tp_rank * width), tensor=torch.rand(rows, width)) for _ in range(8)]
    return {f"w{i}": NamedTensor(name=f"w{i}", global_shape=(rows, 1024), pieces=(p,)) for i, p in enumerate(pieces)}


def measure(mesh, root, megabytes):
    """Seconds for DCP alone, for the checksums of what it wrote, for a whole save and for a whole load."""
    tensors, checkpointer = tensors_of(mesh, megabytes), Checkpointer(root, mesh=mesh)
    path = root / "dcp-alone"
    dcp = seconds(lambda: save_tensors(path, tensors, group=mesh.world_group))
    names = [file.name for file in path.glob(f"__{mesh.rank}_*")]
    checksums = seconds(lambda: record_files(path, names))
    save = seconds(lambda: checkpointer.save(step=1, tensors=tensors, state={}, rank_state={}))
    load = seconds(lambda: checkpointer.load(checkpointer.latest(), tensors))
    return {"dcp": dcp, "checksums": checksums, "save": save, "load": load}


def seconds(call):
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def rate(digest):
    block = os.urandom(64 << 20)
    return len(block) / MB / min(seconds(lambda: digest(block)) for _ in range(4))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=512)
    parser.add_argument("--tp", type=int, default=2)
    options = parser.parse_args()
    for name, digest in {"crc32": zlib.crc32, "blake2b": hashlib.blake2b, "sha256": hashlib.sha256}.items():
        print(f"{name:10} {rate(digest):6.0f} MB/s in memory")
    print(f"{options.megabytes} MB:")
    with tempfile.TemporaryDirectory() as folder:
        ranks = run_on_mesh(measure, Path(folder), options.megabytes, tp=options.tp, timeout=300.0)
    for part in ranks[0]:
        slowest = max(rank[part] for rank in ranks)
        print(f"{part:10} {slowest:6.2f} s on 1x{options.tp}: {options.megabytes / slowest:6.0f} MB/s")
