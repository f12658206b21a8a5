"""What the loop needs of an engine, and the engines there are. The loop knows the Protocol and nothing else."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol

import torch
from tp2d_mesh import NamedTensor

Batch = Mapping[str, torch.Tensor]

# Named by module, so that a run imports its own engine only.
ENGINES = {"fsdp2": ("tp2d_fsdp2", "FSDP2Engine"), "autotp": ("tp2d_autotp", "AutoTPEngine")}


class StepStats(Protocol):
    """What an optimizer step gives back: scalar tensors on the device, so that a step waits for nothing."""

    @property
    def loss(self) -> torch.Tensor:
        """The mean over all unmasked tokens of the step's global batch."""

    @property
    def grad_norm(self) -> torch.Tensor:
        """The global 2-norm of the gradient before clipping."""

    @property
    def tokens(self) -> torch.Tensor:
        """The number of those tokens, counted once per dp rank."""


class Engine(Protocol):
    """One model, sharded over a mesh, and its optimizer. Every method but `set_learning_rate` may be a collective."""

    def train_step(self, micro_batches: Sequence[Batch]) -> StepStats:
        """Makes one optimizer step on this dp rank's micro-batches."""

    def evaluate(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss summed over the tokens of every dp rank's batch, and their number; no gradient."""

    def set_learning_rate(self, learning_rate: float) -> None:
        """Uses this rate from the next step on."""

    def state(self) -> dict[str, NamedTensor]:
        """Weights and moments by full name, as live boxes of this rank."""

    def extra_state(self) -> dict[str, Any]:
        """What else the engine needs to go on, as JSON that is equal on all ranks."""

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Takes back `extra_state`, after the tensors of `state` were filled."""

    def close(self) -> None:
        """Drops the model; the mesh stays open."""


def create_engine(name: str, **options: Any) -> Engine:
    """Builds the engine called `name` with its own keyword arguments; its package is imported here and not before.

    Raises:
        ValueError: an unknown name, or what the engine refuses.
    """
    if name not in ENGINES:
        raise ValueError(f"unknown engine {name!r}: choose {', '.join(ENGINES)}")
    module, factory = ENGINES[name]
    return getattr(import_module(module), factory)(**options)
