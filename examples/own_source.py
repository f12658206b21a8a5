"""Records of your own: any object with a name, an identity and an iterator is a dataset.

    python examples/own_source.py
    torchrun --nproc-per-node 4 examples/own_source.py        # dp 4

Here they come from a SQLite table. They are tokenised once, packed into full rows, shuffled and divided over the
ranks as any other dataset. The identity says when they have to be read again.
"""

import argparse
import os
import sqlite3
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch.distributed as dist
from tp2d_data import BUILTIN_VOCABULARY, create_dataloader
from tp2d_fsdp2 import FSDP2Engine
from tp2d_mesh import EngineSpec, Layout, build_mesh
from transformers import LlamaConfig


class Table:
    """The rows of a table with the columns `question` and `answer`.

    Args:
        path: the database.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = f"questions of {path.name}"

    @property
    def identity(self) -> str:
        """Changes when a row is added or taken away; a column with the time of the last change would tell more."""
        with sqlite3.connect(self.path) as database:
            return str(database.execute("select count(*), max(rowid) from questions").fetchone())

    def __iter__(self) -> Iterator[dict[str, str]]:
        with sqlite3.connect(self.path) as database:
            for question, answer in database.execute("select question, answer from questions order by rowid"):
                yield {"prompt": question, "completion": answer}


def make_table(path: Path) -> None:
    """A table to try it with: sums."""
    with sqlite3.connect(path) as database:
        database.execute("create table questions (question text, answer text)")
        sums = [(f"What is {a} plus {b}?\n", f"{a} plus {b} is {a + b}.") for a in range(30) for b in range(30)]
        database.executemany("insert into questions values (?, ?)", sums)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--folder", type=Path, default=Path("runs/own-source"))
    options = parser.parse_args()

    mesh = build_mesh(Layout(dp=int(os.environ.get("WORLD_SIZE", "1")), tp=1))
    table = options.folder / "questions.db"
    if mesh.rank == 0 and not table.exists():
        options.folder.mkdir(parents=True, exist_ok=True)
        make_table(table)
    dist.barrier()
    loader = create_dataloader(
        "builtin:tiny",
        Table(table),
        seq_length=128,
        batch_size_per_gpu=4,
        dp_rank=mesh.dp_rank,
        dp_size=mesh.layout.dp,
        loss_on="completion",
        device=mesh.device,
    )
    config = LlamaConfig(
        vocab_size=BUILTIN_VOCABULARY,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
    )
    engine = FSDP2Engine(EngineSpec(learning_rate=3e-3), config=config, weights=None, mesh=mesh)
    step, epoch = 0, 0
    while step < options.steps:
        loader.sampler.set_epoch(epoch)
        for batch in islice(loader, options.steps - step):
            stats = engine.train_step([batch])
            step += 1
            if step % 10 == 0 and mesh.rank == 0:
                print(f"step {step}  loss {stats.loss:.3f}  {int(stats.tokens)} tokens", flush=True)
        epoch += 1
    engine.close()
    mesh.close()


if __name__ == "__main__":
    main()
