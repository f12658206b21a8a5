"""What saving and loading a checkpoint costs, and what its checksums add to it.

    python benchmarks/save_cost.py                      # 512 MB, about 30 seconds
    python benchmarks/save_cost.py --megabytes 64       # about 10 seconds

Prints how fast checksums are on data in memory, and the seconds of the slowest rank for: DCP alone, the checksums of
what it wrote, a whole save, a whole load with its verification.
"""

import argparse
import hashlib
import os
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import torch
from tp2d_ckpt import Checkpointer
from tp2d_ckpt.commit import record_files
from tp2d_ckpt.dcp import save_tensors
from tp2d_mesh import Mesh, NamedTensor, Piece
from tp2d_mesh.testing import run_on_mesh

MB = 1e6
CHECKSUMS = {"crc32": zlib.crc32, "blake2b": hashlib.blake2b, "sha256": hashlib.sha256}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=512, help="of tensors, 10**6 bytes each")
    parser.add_argument("--tp", type=int, default=2, help="ranks that share them")
    options = parser.parse_args()
    for name, checksum in CHECKSUMS.items():
        print(f"{name:10} {rate(checksum):6.0f} MB/s in memory")
    print(f"{options.megabytes} MB:")
    with tempfile.TemporaryDirectory() as folder:
        ranks = run_on_mesh(measure, Path(folder), options.megabytes, tp=options.tp, timeout=300.0)
    for part in ranks[0]:
        slowest = max(rank[part] for rank in ranks)
        print(f"{part:10} {slowest:6.2f} s on 1x{options.tp}: {options.megabytes / slowest:6.0f} MB/s")


def measure(mesh: Mesh, root: Path, megabytes: int) -> dict[str, float]:
    """Seconds for DCP alone, for the checksums of what it wrote, for a whole save and for a whole load."""
    tensors, checkpointer = tensors_of(mesh, megabytes), Checkpointer(root, mesh=mesh)
    path = root / "dcp-alone"
    dcp = seconds(lambda: save_tensors(path, tensors, group=mesh.world_group))
    names = [file.name for file in path.glob(f"__{mesh.rank}_*")]
    checksums = seconds(lambda: record_files(path, names))
    save = seconds(lambda: checkpointer.save(step=1, tensors=tensors, state={}, rank_state={}))
    info = checkpointer.latest()
    assert info is not None
    load = seconds(lambda: checkpointer.load(info, tensors))
    return {"dcp": dcp, "checksums": checksums, "save": save, "load": load}


def tensors_of(mesh: Mesh, megabytes: int) -> dict[str, NamedTensor]:
    """Eight matrices, split over tp by columns."""
    rows = int(megabytes * MB) // 8 // 4 // 1024
    width = 1024 // mesh.layout.tp
    pieces = [Piece(offsets=(0, mesh.tp_rank * width), tensor=torch.rand(rows, width)) for _ in range(8)]
    return {f"w{i}": NamedTensor(name=f"w{i}", global_shape=(rows, 1024), pieces=(p,)) for i, p in enumerate(pieces)}


def seconds(call: Callable[[], object]) -> float:
    """Wall seconds of `call`."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def rate(checksum: Callable[[bytes], object]) -> float:
    """MB/s of a checksum on data in memory, the best of four."""
    block = os.urandom(64 << 20)
    return len(block) / MB / min(seconds(lambda: checksum(block)) for _ in range(4))


if __name__ == "__main__":
    main()
