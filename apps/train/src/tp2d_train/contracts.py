"""What the loop needs of an engine and of a data loader. It knows these two Protocols and nothing else of them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from tp2d_mesh import NamedTensor, StepStats

Batch = Mapping[str, torch.Tensor]


class Engine(Protocol):
    """One model, sharded over a mesh, and its optimizer. Every method but `set_learning_rate` may be a collective."""

    @property
    def parameter_count(self) -> int:
        """The parameters of the whole model, a tied one once."""

    @property
    def compiled(self) -> bool:
        """Whether the first step compiles the model's layers."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know of how the model is computed."""

    def train_step(self, micro_batches: Sequence[Batch]) -> StepStats:
        """Makes one optimizer step on this dp rank's micro-batches."""

    def evaluate(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss summed over the tokens of every dp rank's batch, and their number; no gradient."""

    def set_learning_rate(self, learning_rate: float) -> None:
        """Uses this learning rate from the next step on."""

    def state(self) -> dict[str, NamedTensor]:
        """Weights and moments by full name, as live boxes of this rank."""

    def extra_state(self) -> dict[str, Any]:
        """What else the engine needs to go on, as JSON that is equal on all ranks."""

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Takes back `extra_state`, after the tensors of `state` were filled."""

    def close(self) -> None:
        """Drops the model; the mesh stays open."""


class Epochs(Protocol):
    """What chooses the order of an epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch of the next iteration."""


class Loader(Protocol):
    """One dp rank's micro-batches of an epoch; iterating goes on at a loaded position."""

    @property
    def sampler(self) -> Epochs:
        """Has `set_epoch`."""

    def __len__(self) -> int:
        """Micro-batches of a whole epoch; TypeError for a stream."""

    def __iter__(self) -> Iterator[Batch]: ...

    def state_dict(self) -> dict[str, Any]:
        """The position, as JSON that is equal on all ranks."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Lets the next iteration begin at a saved position."""
