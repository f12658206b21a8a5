"""One rank of one contender of `loops.py`: it builds its loop, then takes a turn whenever it is told to.

`loops.py` starts it with the variables of torchrun and talks to it in JSON lines: to standard input `{"steps": 4}`, or
`{"steps": 1, "count": true}`; from standard output `{"ready": true}` once, and a report for each turn. The end of its
input ends it. Libraries print to standard error.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from itertools import count, islice
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed as dist
from loop_contenders import CONTENDERS, Batch, Place
from tp2d_data import create_dataloader
from tp2d_mesh import Layout, Mesh, build_mesh

_TIMEOUT = timedelta(hours=2)  # a rank waits for its peers' turn no longer than one turn takes


class Turns:
    """Lets a contender compute only when it is its turn, and measures what the turn took.

    Args:
        mesh: names the axes of counted collectives.
        answers: where reports are written.
    """

    def __init__(self, mesh: Mesh, answers: IO[str]) -> None:
        self._mesh, self._answers = mesh, answers
        self._losses: list[torch.Tensor] = []
        self._left = 0
        self._base = private_bytes()
        self._peak = 0

    def begin(self) -> None:
        """Say that the loop is built, and wait for the first turn."""
        self._answer({"ready": True})
        self._wait()

    def step(self, loss: torch.Tensor) -> bool:
        """A step is done; at the end of a turn, report it and wait for the next. False: there is none."""
        self._losses.append(loss.detach())
        self._left -= 1
        if self._left:
            return True
        losses = [float(one) for one in self._losses]
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        self._counting.close()
        self._peak = max(self._peak, peak_private_bytes())
        self._answer({"wall": wall, "cpu": cpu, "losses": losses, "memory": self._memory(), "traffic": self._traffic()})
        return self._wait()

    def _memory(self) -> int:
        return self._peak - self._base

    def _traffic(self) -> dict[str, tuple[int, int]] | None:
        if self._counted is None:
            return None
        kinds = sorted({c.kind for c in self._counted.select()})
        return {kind: (self._counted.calls(kind), self._counted.size(kind)) for kind in kinds}

    def _answer(self, message: dict[str, Any]) -> None:
        self._answers.write(json.dumps(message) + "\n")
        self._answers.flush()

    def _wait(self) -> bool:
        line = sys.stdin.readline()
        if not line:
            return False
        told = json.loads(line)
        self._left, self._losses = told["steps"], []
        self._counting = ExitStack()
        self._counted: Any = None
        if told.get("count"):
            from tp2d_mesh.testing.counted import counted

            self._counted = self._counting.enter_context(counted(self._mesh))
        forget_peak()
        self._wall, self._cpu = time.perf_counter(), time.process_time()
        return True


def private_bytes() -> int:
    """Bytes of memory that only this process has, now."""
    return _status("VmRSS") - _status("RssFile") - _status("RssShmem")


def peak_private_bytes() -> int:
    """The most that this process has had since `forget_peak`, files that it has mapped not counted."""
    return _status("VmHWM") - _status("RssFile") - _status("RssShmem")


def forget_peak() -> None:
    """Let the peak be counted from now on."""
    Path("/proc/self/clear_refs").write_text("5")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}")


def batches(options: argparse.Namespace, *, dp_rank: int, dp: int, rows: int) -> Iterator[Batch]:
    """As many batches as the run has steps, prepared beforehand, so that no turn pays for them."""
    loader = create_dataloader(
        "builtin:small",
        str(options.folder / "corpus.txt"),
        options.seq_length,
        rows,
        dp_rank,
        dp,
        dataset_percentage=100,
        holdout_percentage=0,
        respect_boundaries=options.packed,
        num_workers=0,
    )
    taken: list[Batch] = []
    for epoch in count():
        loader.sampler.set_epoch(epoch)
        taken += islice(loader, options.steps - len(taken))
        if len(taken) == options.steps:
            return iter(taken)
    raise AssertionError("unreachable")


def join(layout: Layout) -> Mesh:
    """The mesh, over the store that `loops.py` serves."""
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=_TIMEOUT)
    rank = int(os.environ["RANK"])
    dist.init_process_group("gloo", store=store, rank=rank, world_size=layout.world_size, timeout=_TIMEOUT)
    return build_mesh(layout, device=torch.device("cpu"), timeout=_TIMEOUT)


def main() -> None:
    """Builds the loop and takes turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contender", choices=CONTENDERS, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="with corpus.txt and model/")
    for name in ("dp", "tp", "seq-length", "rows", "steps"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--clip", action="store_true")
    parser.add_argument("--packed", action="store_true")
    options = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    mesh = join(Layout(dp=options.dp, tp=options.tp))
    whole = options.contender == "trainer"  # it deals the rows out itself
    shard = {"dp_rank": 0, "dp": 1} if whole else {"dp_rank": mesh.dp_rank, "dp": options.dp}
    data = batches(options, rows=options.rows * (options.dp if whole else 1), **shard)
    import transformers.models.qwen2.modeling_qwen2  # noqa: F401 # before the memory that the loop adds is counted

    turns = Turns(mesh, answers)
    place = Place(mesh=mesh, model=options.folder / "model", clip=options.clip, steps=options.steps, rows=options.rows)
    CONTENDERS[options.contender](place).run(data, turns)


if __name__ == "__main__":
    main()
