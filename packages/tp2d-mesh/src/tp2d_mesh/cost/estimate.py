"""What one optimizer step needs of a rank, as a planner takes it from an engine: memory by kind, and collectives."""

from dataclasses import dataclass, fields

from tp2d_mesh.cost.step import Traffic


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one rank at the moment of a step when it holds the most, by kind.

    Args:
        weights: its share of the master weights.
        gradients: its share of the gradients.
        optimizer: its share of the optimizer's moments.
        gathered: weights and gradients that it holds whole, beside its shares, while a unit computes.
        activations: what forward keeps for backward, and the most that a layer's own computation adds to it.
        logits: of the head and the loss.
        buffers: communication, and what an engine allocates once.
    """

    weights: int
    gradients: int
    optimizer: int
    gathered: int
    activations: int
    logits: int
    buffers: int

    @property
    def total(self) -> int:
        """All kinds together."""
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """One optimizer step of one rank.

    Args:
        memory: at the peak, by kind.
        traffic: its collectives.
        gather_once: whether weights are gathered and gradients reduced once per step.
    """

    memory: Memory
    traffic: tuple[Traffic, ...]
    gather_once: bool
