"""A real engine of one process, small enough for the loop's own tests, and what a loop needs around it."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from tp2d_ckpt import Checkpointer
from tp2d_data import IGNORED, Sharding
from tp2d_data.sampling.mixture import Mixture
from tp2d_data.sampling.sampler import Sampler
from tp2d_mesh import Mesh, NamedTensor, Piece, StepStats
from tp2d_train.config import TrainConfig
from tp2d_train.contracts import Batch
from tp2d_train.report.meter import Clock, Hardware, Meter
from tp2d_train.report.metrics import read_lines
from tp2d_train.report.record import Record
from tp2d_train.runs.folder import RunFolder
from tp2d_train.training.checkpoints import Checkpoints
from tp2d_train.training.loop import Loop
from tp2d_train.training.state import RunState
from tp2d_train.training.stop import StopVote, stop_requests

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

    @property
    def parameter_count(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    def train_step(self, micro_batches: Sequence[Batch]) -> StepStats:
        self.model.train()
        self.optimizer.zero_grad()
        losses, counts = zip(*(self._sums(batch) for batch in micro_batches), strict=True)
        tokens = torch.stack(counts).sum()
        loss = torch.stack(losses).sum() / tokens
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        if norm.isfinite():
            self.optimizer.step()
        rate = self.optimizer.param_groups[0]["lr"]
        self.steps.append({"loss": loss.item(), "tokens": tokens.item(), "lr": rate})
        self.seen.append([batch["input_ids"][:, 0].tolist() for batch in micro_batches])
        self.after_step(len(self.steps))
        positions = torch.tensor(sum(batch["labels"].numel() for batch in micro_batches))
        skipped = ~norm.isfinite()
        return StepStats(loss=loss.detach(), grad_norm=norm, tokens=tokens, positions=positions, skipped=skipped)

    @torch.no_grad()
    def evaluate(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        self.model.eval()
        return self._sums(batch)

    def _sums(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        labels = batch["labels"][:, 1:].flatten()
        logits = self.model(batch["input_ids"])[:, :-1].flatten(0, 1)
        return F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum"), (labels != IGNORED).sum()

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
        self.labels = self.ids.masked_fill(torch.arange(LENGTH) >= lengths, IGNORED)
        sharding = Sharding(batch_size_per_gpu=batch, dp_rank=0, dp_size=1)
        self.sampler = Sampler(Mixture([range(count)], sharding=sharding))  # of its parts it asks the number of rows

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        for picks in self.sampler:
            rows = torch.from_numpy(picks.number)
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

    folder: RunFolder
    engine: SmallEngine
    run: RunState
    clock: Clock
    reports: list[dict[str, Any]]
    finished: bool = False

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in read_lines(self.folder.events)[0] if event["event"] == kind]

    def lines(self, metric: str) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl` that have this metric."""
        return [line for line in read_lines(self.folder.metrics)[0] if metric in line]

    def steps_of(self, kind: str) -> list[int]:
        return [event["step"] for event in self.events(kind)]


def start(
    path: Path,
    mesh: Mesh,
    *,
    engine: SmallEngine | None = None,
    rows: int = 12,
    held_out: int = 0,
    stop_at: int | None = None,
    **settings: Any,
) -> Bench:
    """Starts or resumes a run in `path` as the worker does, and trains; a stop is asked for after step `stop_at`."""
    folder = RunFolder(path)
    path.mkdir(exist_ok=True)
    config = TrainConfig(**SETTINGS | settings)
    engine, reports = engine or SmallEngine(), []
    loader = (Stream if config.streaming else Rows)(rows, batch=config.batch_size_per_gpu)
    checkpointer = Checkpointer(folder.checkpoints, mesh=mesh, keep=config.keep_checkpoints)
    checkpoints = Checkpoints(
        checkpointer,
        newest=checkpointer.latest,
        mesh=mesh,
        engine=engine,
        loader=loader,
        settings=config.as_dict(),
        report=lambda info, metrics: reports.append(json.loads(json.dumps(metrics))),
    )
    run, seconds, _ = checkpoints.restore()
    clock = Clock(mesh.device)
    clock.carry_over(seconds)
    record = Record(folder, active=True)
    record.resume(step=run.step)
    folder.stop.unlink(missing_ok=True)
    engine.after_step = lambda step: folder.stop.touch() if step == stop_at else None
    bench = Bench(folder=folder, engine=engine, run=run, clock=clock, reports=reports)
    with stop_requests(folder.stop) as requested:
        vote = StopVote(requested, timeout=timedelta(seconds=20))
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
            meter=Meter(clock, Hardware(device=mesh.device), step=run.step, tokens=run.tokens, positions=run.positions),
        )
        bench.finished = loop.run()
        vote.settle()
    return bench
