"""A real engine of one process, small enough for the loop's own tests, and what a loop needs around it."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from tp2d_ckpt import Checkpointer
from tp2d_data.sampler import Sampler, Sharding
from tp2d_mesh import Layout, Mesh, NamedTensor, Piece, build_mesh
from tp2d_train.checkpoints import Checkpoints
from tp2d_train.config import TrainConfig
from tp2d_train.engines import Batch
from tp2d_train.loop import Loop
from tp2d_train.meter import Clock, Hardware, Meter
from tp2d_train.metrics import read_lines
from tp2d_train.progress import EVENTS_FILE
from tp2d_train.record import METRICS_FILE, Record
from tp2d_train.state import RunState
from tp2d_train.stop import StopVote, wish_to_stop

VOCABULARY, LENGTH = 13, 6
SETTINGS: dict[str, Any] = {
    "tp_size": 1,
    "num_workers": 1,
    "batch_size_per_gpu": 1,
    "log_interval": 1,
    "learning_rate": 1e-2,
    "lr_scheduler": "constant",
    "warmup_steps": 0,
}


@contextmanager
def one_rank() -> Iterator[Mesh]:
    """A 1x1 mesh of this process."""
    mesh = build_mesh(Layout(dp=1, tp=1), device=torch.device("cpu"))
    try:
        yield mesh
    finally:
        mesh.close()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stats:
    loss: torch.Tensor
    grad_norm: torch.Tensor
    tokens: torch.Tensor


class SmallEngine:
    """A bigram model with dropout, so that a lost random state shows in the next loss."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(
            torch.nn.Embedding(VOCABULARY, 8), torch.nn.Dropout(0.2), torch.nn.Linear(8, VOCABULARY)
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        self.steps: list[dict[str, float]] = []  # what every step computed, for the tests to compare
        self.seen: list[list[list[int]]] = []  # the rows of every step's micro-batches
        self.after_step: Callable[[int], None] = lambda step: None

    def train_step(self, micro_batches: Sequence[Batch]) -> Stats:
        self.model.train()
        self.optimizer.zero_grad()
        losses, counts = zip(*(self._sums(batch) for batch in micro_batches), strict=True)
        tokens = torch.stack(counts).sum()
        loss = torch.stack(losses).sum() / tokens
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        self.optimizer.step()
        rate = self.optimizer.param_groups[0]["lr"]
        self.steps.append({"loss": loss.item(), "tokens": tokens.item(), "lr": rate})
        self.seen.append([batch["input_ids"][:, 0].tolist() for batch in micro_batches])
        self.after_step(len(self.steps))
        return Stats(loss=loss.detach(), grad_norm=norm, tokens=tokens)

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        self.model.eval()
        return self._sums(batch)

    def _sums(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        labels = batch["labels"][:, 1:].flatten()
        logits = self.model(batch["input_ids"])[:, :-1].flatten(0, 1)
        return F.cross_entropy(logits, labels, ignore_index=-100, reduction="sum"), (labels != -100).sum()

    def set_learning_rate(self, learning_rate: float) -> None:
        self.optimizer.param_groups[0]["lr"] = learning_rate

    def state(self) -> dict[str, NamedTensor]:
        tensors = {f"model.{name}": value.detach() for name, value in self.model.named_parameters()}
        for name, value in self.model.named_parameters():
            if value not in self.optimizer.state:
                zeros = {key: torch.zeros_like(value) for key in ("exp_avg", "exp_avg_sq")}
                self.optimizer.state[value] = {"step": torch.tensor(0.0), **zeros}
            for moment in ("exp_avg", "exp_avg_sq"):
                tensors[f"optim.{name}.{moment}"] = self.optimizer.state[value][moment]
        return {
            name: NamedTensor(name=name, global_shape=tuple(t.shape), pieces=(Piece(offsets=(0,) * t.dim(), tensor=t),))
            for name, t in tensors.items()
        }

    def extra_state(self) -> dict[str, Any]:
        return {"steps": max((int(state["step"]) for state in self.optimizer.state.values()), default=0)}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        for values in self.optimizer.state.values():
            values["step"].fill_(state["steps"])

    def close(self) -> None:
        pass


class Rows:
    """Random ragged rows behind tp2d-data's own sampler; a row's first token tells which it is."""

    def __init__(self, count: int, *, batch: int = 1) -> None:
        generator = torch.Generator().manual_seed(1)
        self.ids = torch.randint(0, VOCABULARY, (count, LENGTH), generator=generator)
        self.ids[:, 0] = torch.arange(count) % VOCABULARY
        lengths = torch.randint(2, LENGTH + 1, (count, 1), generator=generator)
        self.labels = self.ids.masked_fill(torch.arange(LENGTH) >= lengths, -100)
        self.sampler = Sampler(num_rows=count, sharding=Sharding(batch_size_per_gpu=batch, dp_rank=0, dp_size=1))

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        for numbers in self.sampler:
            rows = torch.from_numpy(numbers)
            yield {"input_ids": self.ids[rows], "labels": self.labels[rows]}

    def state_dict(self) -> dict[str, Any]:
        return self.sampler.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.sampler.load_state_dict(state)


class Stream(Rows):
    """The same, but nobody has counted them."""

    def __len__(self) -> int:
        raise TypeError("a stream has no length")


@dataclasses.dataclass(kw_only=True)
class Bench:
    """One start of a run in `folder`: what it computed and what it left."""

    folder: Path
    engine: SmallEngine
    run: RunState
    clock: Clock
    reports: list[dict[str, Any]]
    finished: bool = False

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in read_lines(self.folder / EVENTS_FILE)[0] if event["event"] == kind]

    def lines(self, figure: str) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl` that have this figure."""
        return [line for line in read_lines(self.folder / METRICS_FILE)[0] if figure in line]

    def steps_of(self, kind: str) -> list[int]:
        return [event["step"] for event in self.events(kind)]


def start(
    folder: Path,
    mesh: Mesh,
    *,
    engine: SmallEngine | None = None,
    rows: int = 12,
    held_out: int = 0,
    stop_at: int | None = None,
    **settings: Any,
) -> Bench:
    """Starts or resumes a run in `folder` as the worker does, and trains; a stop is asked for after step `stop_at`."""
    folder.mkdir(exist_ok=True)
    config = TrainConfig(**SETTINGS | settings)
    engine, reports = engine or SmallEngine(), []
    loader = (Stream if config.streaming else Rows)(rows, batch=config.batch_size_per_gpu)
    checkpointer = Checkpointer(folder / "checkpoints", mesh=mesh, keep=config.keep_checkpoints)
    checkpoints = Checkpoints(
        checkpointer,
        newest=checkpointer.latest,
        mesh=mesh,
        engine=engine,
        loader=loader,
        settings=config.as_dict(),
        report=lambda info, figures: reports.append(json.loads(json.dumps(figures))),
    )
    run, seconds, _ = checkpoints.restore()
    clock = Clock(mesh.device)
    clock.carry_over(seconds)
    record = Record(folder, active=True)
    record.resume(step=run.step)
    stop_file = folder / ".stop"
    stop_file.unlink(missing_ok=True)
    engine.after_step = lambda step: stop_file.touch() if step == stop_at else None
    bench = Bench(folder=folder, engine=engine, run=run, clock=clock, reports=reports)
    with wish_to_stop(stop_file) as wish:
        vote = StopVote(wish, timeout=timedelta(seconds=20))
        loop = Loop(
            config,
            engine=engine,
            loader=loader,
            held_out=Rows(held_out) if held_out else None,
            checkpoints=checkpoints,
            record=record,
            vote=vote,
            run=run,
            clock=clock,
            meter=Meter(clock, Hardware(device=mesh.device), step=run.step, tokens=run.tokens),
        )
        bench.finished = loop.run()
        vote.settle()
    return bench
