"""Where ranks stand on nodes. A tp group exchanges activations in every layer, so it belongs inside one node.

Pure functions: the driver asks `check_capacity` before it starts workers; the workers, who know their nodes, ask
`check_tp_groups` before they load a model.
"""

from collections.abc import Mapping, Sequence

from tp2d_mesh.layout import Layout


def rank_table(nodes: Sequence[str], *, layout: Layout) -> str:
    """A table of every rank's place, one line a dp rank.

    Args:
        nodes: the node id of every rank, in rank order.
        layout: the mesh.

    Returns:
        For example, for 2x2 on two nodes::

            dp 0: rank 0 on a, rank 1 on a
            dp 1: rank 2 on b, rank 3 on b
    """
    _check_length(nodes, layout)
    lines = []
    for dp_rank, group in enumerate(layout.tp_groups()):
        lines.append(f"dp {dp_rank}: " + ", ".join(f"rank {rank} on {nodes[rank]}" for rank in group))
    return "\n".join(lines)


def split_tp_groups(nodes: Sequence[str], *, layout: Layout) -> list[tuple[int, ...]]:
    """The tp groups whose ranks are not all on one node; `nodes` as in `rank_table`."""
    _check_length(nodes, layout)
    return [group for group in layout.tp_groups() if len({nodes[rank] for rank in group}) > 1]


def check_tp_groups(nodes: Sequence[str], *, layout: Layout) -> None:
    """Refuse a placement with a tp group on more than one node; `nodes` as in `rank_table`.

    Raises:
        ValueError: names the groups and shows the rank table.
    """
    split = split_tp_groups(nodes, layout=layout)
    if split:
        groups = ", ".join(str(list(group)) for group in split)
        raise ValueError(
            f"a {layout} mesh has {len(split)} of {layout.dp} tp groups on more than one node (ranks {groups}): free "
            f"{layout.tp} slots on one node for each group, or choose a smaller tp.\n{rank_table(nodes, layout=layout)}"
        )


def placeable_ranks(free: Mapping[str, int], *, tp: int) -> int:
    """How many ranks fit when no tp group spans nodes: the sum over nodes of `floor(free / tp) * tp`.

    Args:
        free: the free worker slots (GPUs) of every node, by node id.
        tp: the size of a tp group.
    """
    return sum(slots // tp * tp for slots in free.values())


def check_capacity(free: Mapping[str, int], *, layout: Layout) -> None:
    """Refuse a mesh that the free slots cannot hold with every tp group inside a node; `free` as in `placeable_ranks`.

    Raises:
        ValueError: shows the slots of every node and how many ranks they hold.
    """
    fits = placeable_ranks(free, tp=layout.tp)
    if fits < layout.world_size:
        slots = ", ".join(f"{node}: {count}" for node, count in free.items()) or "no nodes"
        raise ValueError(
            f"a {layout} mesh needs {layout.world_size} slots in runs of tp={layout.tp} on one node and the free slots "
            f"({slots}) hold {fits}: free more, or choose another dp or tp."
        )


def _check_length(nodes: Sequence[str], layout: Layout) -> None:
    if len(nodes) != layout.world_size:
        raise ValueError(f"a {layout} mesh has {layout.world_size} ranks and nodes were given for {len(nodes)}.")
