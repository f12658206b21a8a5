"""Which rank stands on which node, from the table that the run's last start has written."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tp2d_train.page.facts import Facts

_LINE = re.compile(r"dp \d+: (.+)")
_RANK = re.compile(r"rank (\d+) on (.+)")
COMPACT_FROM = 8  # ranks of a tp group from which a drawing has the ranks' numbers alone


@dataclass(frozen=True, kw_only=True)
class Replica:
    """The ranks of a dp rank that stand on one node.

    Args:
        dp_rank: which.
        ranks: for each tp rank the global rank; None: it stands on another node.
    """

    dp_rank: int
    ranks: Sequence[int | None]


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node and what stands on it.

    Args:
        name: as the run has it.
        replicas: by dp rank.
    """

    name: str
    replicas: Sequence[Replica]


@dataclass(frozen=True, kw_only=True)
class Placement:
    """A mesh and its nodes.

    Args:
        mesh: its sizes in words.
        tp: the number of ranks in a tp group.
        ranks: how many there are.
        nodes: in the order of their first rank.
    """

    mesh: str
    tp: int
    ranks: int
    nodes: Sequence[Node]

    @property
    def is_compact(self) -> bool:
        return self.tp >= COMPACT_FROM


def placement_of(run: Facts) -> Placement | None:
    """Where the ranks of a run's last start stand; None where it has not said so."""
    if not run.starts:
        return None
    values = run.starts[-1].values
    groups = read_places(str(values.get("places", "")))
    if groups is None:
        return None
    names = dict.fromkeys(node for group in groups for _, node in group)
    return Placement(
        mesh=str(values.get("mesh", "")),
        tp=len(groups[0]),
        ranks=sum(map(len, groups)),
        nodes=[Node(name=name, replicas=_replicas(groups, name)) for name in names],
    )


def read_places(table: str) -> list[list[tuple[int, str]]] | None:
    """The `(rank, node)` of every tp group, from `tp2d_mesh.placement.rank_table`; None where it is no such table."""
    groups = []
    for line in table.splitlines():
        found = _LINE.fullmatch(line)
        ranks = [_RANK.fullmatch(part) for part in found[1].split(", ")] if found else [None]
        groups.append([(int(rank[1]), rank[2]) for rank in ranks if rank is not None])
        if len(groups[-1]) != len(ranks) or len(groups[-1]) != len(groups[0]):
            return None
    return groups or None


def _replicas(groups: Sequence[Sequence[tuple[int, str]]], node: str) -> list[Replica]:
    rows = [[rank if place == node else None for rank, place in group] for group in groups]
    return [Replica(dp_rank=at, ranks=row) for at, row in enumerate(rows) if any(rank is not None for rank in row)]
