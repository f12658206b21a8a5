"""The arithmetic of a dp x tp mesh: which rank stands where, without any process group.

Ranks count along tp first, so that a tp group is a run of neighbouring ranks, which one node can hold:
`tp_rank = rank % tp` and `dp_rank = rank // tp`.
"""

from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, kw_only=True)
class Coordinates:
    """Where a rank stands: its index on each axis, from 0."""

    dp_rank: int
    tp_rank: int


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The sizes of the two axes.

    Args:
        dp: data-parallel size, the number of replicas that see different rows.
        tp: tensor-parallel size, the number of ranks that share every row and split every layer.

    Raises:
        ValueError: a size is not a positive integer.
    """

    dp: int
    tp: int

    def __post_init__(self) -> None:
        for name, size in (("dp", self.dp), ("tp", self.tp)):
            _check_size(name, size)

    @classmethod
    def from_world(cls, world_size: int, tp_size: int) -> Self:
        """The layout of `world_size` ranks with `tp_size` of them in a tp group: `dp = world_size / tp_size`.

        Raises:
            ValueError: `tp_size` does not divide `world_size`.
        """
        _check_size("world_size", world_size)
        _check_size("tp_size", tp_size)
        if world_size % tp_size:
            raise ValueError(
                f"world_size={world_size} is not a multiple of tp_size={tp_size} ({world_size} % {tp_size} = "
                f"{world_size % tp_size}): choose tp_size from {_divisors(world_size)}, or another number of workers."
            )
        return cls(dp=world_size // tp_size, tp=tp_size)

    @property
    def world_size(self) -> int:
        return self.dp * self.tp

    def coordinates(self, rank: int) -> Coordinates:
        """Where global `rank` stands.

        Raises:
            ValueError: `rank` is not in `0 .. world_size - 1`.
        """
        _check_index("rank", rank, self.world_size, self)
        return Coordinates(dp_rank=rank // self.tp, tp_rank=rank % self.tp)

    def rank(self, *, dp_rank: int, tp_rank: int) -> int:
        """The global rank that stands there.

        Raises:
            ValueError: an index is outside its axis.
        """
        _check_index("dp_rank", dp_rank, self.dp, self)
        _check_index("tp_rank", tp_rank, self.tp, self)
        return dp_rank * self.tp + tp_rank

    def tp_groups(self) -> tuple[tuple[int, ...], ...]:
        """The ranks of every tp group, by dp rank; each a run of neighbouring ranks."""
        return tuple(tuple(range(d * self.tp, (d + 1) * self.tp)) for d in range(self.dp))

    def dp_groups(self) -> tuple[tuple[int, ...], ...]:
        """The ranks of every dp group, by tp rank; each with stride tp."""
        return tuple(tuple(range(t, self.world_size, self.tp)) for t in range(self.tp))

    def __str__(self) -> str:
        return f"{self.dp}x{self.tp} (dp x tp)"


def _check_size(name: str, size: int) -> None:
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ValueError(f"{name}={size!r} is not a size: give a whole number of at least 1.")


def _check_index(name: str, index: int, size: int, layout: Layout) -> None:
    if not 0 <= index < size:
        raise ValueError(f"{name}={index} is outside the layout {layout}: give a number from 0 to {size - 1}.")


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]
