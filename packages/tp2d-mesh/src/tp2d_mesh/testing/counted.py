"""Counts the collectives of a block of code: kind, axis, bytes and dtype of each, on a real mesh or a fake one.

    with counted(mesh) as seen:
        engine.train_step([batch])
    assert seen.calls("all_reduce", axis="tp") == 4 * layers + 2

    with fake_mesh(dp=128, tp=8) as mesh:  # rank 0 of 1,024, in this process alone
        ...

It sees the operators of `torch.distributed` and the functional ones, in forward and in backward, eager and under
`torch.compile`, whatever the backend. An operator that it does not know is an error, not an omission.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch._ops import HigherOrderOperator, OpOverload
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from tp2d_mesh.layout import Layout
from tp2d_mesh.mesh import AXES, Mesh


@dataclass(frozen=True, kw_only=True)
class Collective:
    """One call.

    Args:
        kind: all_reduce, all_gather, reduce_scatter, broadcast, all_to_all, reduce, gather or scatter.
        axis: dp, tp or world, or else the name of the process group.
        ranks: the size of the group.
        size: bytes of the whole tensor: before an all-reduce or a reduce-scatter, after an all-gather.
        dtype: of the tensor that travels.
        shape: of the tensor that this rank gives; of several at once, the first.
    """

    kind: str
    axis: str
    ranks: int
    size: int
    dtype: torch.dtype
    shape: tuple[int, ...]


class Counted:
    """The collectives of a block, in the order of their calls.

    Attributes:
        collectives: all of them, those over a group of one rank too, which move nothing.
    """

    def __init__(self) -> None:
        self.collectives: list[Collective] = []

    def select(
        self, kind: str | None = None, *, axis: str | None = None, shape: Sequence[int] | None = None
    ) -> list[Collective]:
        """Those over more than one rank, of this kind, over this axis, given a tensor of this shape; None: any."""
        return [
            c
            for c in self.collectives
            if c.ranks > 1
            and kind in (None, c.kind)
            and axis in (None, c.axis)
            and (shape is None or c.shape == tuple(shape))
        ]

    def calls(self, kind: str | None = None, *, axis: str | None = None, shape: Sequence[int] | None = None) -> int:
        """How many there are; see `select`."""
        return len(self.select(kind, axis=axis, shape=shape))

    def size(self, kind: str | None = None, *, axis: str | None = None, shape: Sequence[int] | None = None) -> int:
        """Bytes of their whole tensors together; see `select`."""
        return sum(c.size for c in self.select(kind, axis=axis, shape=shape))

    def totals(self) -> dict[tuple[str, str], tuple[int, int]]:
        """`(kind, axis) -> (calls, size)` of those over more than one rank."""
        keys = sorted({(c.kind, c.axis) for c in self.select()})
        return {(kind, axis): (self.calls(kind, axis=axis), self.size(kind, axis=axis)) for kind, axis in keys}


@contextmanager
def counted(mesh: Mesh) -> Iterator[Counted]:
    """Within the block, this thread's collectives and those of its backward are counted.

    What is compiled within the block runs as outside it; tracing counts nothing. Blocks may be nested.

    Args:
        mesh: names the axes.

    Raises:
        RuntimeError: in the block, at a collective whose bytes this does not know.
    """
    groups = {"world": mesh.world_group, "dp": mesh.dp_group, "tp": mesh.tp_group}
    names: dict[str, str] = {group.group_name: axis for axis, group in groups.items()}
    found = Counted()
    with _Recorder(found, names):
        yield found


@contextmanager
def fake_mesh(*, dp: int = 1, tp: int = 1, rank: int = 0) -> Iterator[Mesh]:
    """The mesh of one rank of dp x tp, in one process, over a process group that moves nothing.

    Calls and shapes are those of a real run. Values are not: an all-reduce returns what it was given.

    Args:
        dp: data-parallel size.
        tp: tensor-parallel size.
        rank: of the dp x tp ranks, the one that this process is.

    Raises:
        ValueError: this process has a process group already, or a size or the rank is out of range.
    """
    from torch.testing._internal.distributed.fake_pg import FakeStore  # registers the backend "fake"

    layout = Layout(dp=dp, tp=tp)
    layout.coordinates(rank)
    if dist.is_initialized():
        raise ValueError("fake_mesh needs a process without a process group: destroy it, or use another process.")
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=layout.world_size)
    try:
        groups = [_fake_group(ranks) for ranks in (layout.dp_groups(), layout.tp_groups())]
        device_mesh = DeviceMesh.from_group(groups, "cpu", mesh=layout.tp_groups(), mesh_dim_names=AXES)
        yield Mesh(layout=layout, device_mesh=device_mesh, device=torch.device("cpu"), rank=rank, owns_world=True)
    finally:
        dist.destroy_process_group()


def _fake_group(groups: Sequence[Sequence[int]]) -> dist.ProcessGroup:
    """Made as `build_mesh` makes it: a group of the whole world is another than the default one here too."""
    group, _ = dist.new_subgroups_by_enumeration([list(ranks) for ranks in groups], backend="fake")
    return group


# Operator -> (kind, position of the tensors that this rank gives). Overwriting variants end in "_" or "_out".
_FUNCTIONAL = {
    "all_reduce": ("all_reduce", 0),
    "all_reduce_": ("all_reduce", 0),
    "all_reduce_coalesced": ("all_reduce", 0),
    "all_reduce_coalesced_": ("all_reduce", 0),
    "all_gather_into_tensor": ("all_gather", 0),
    "all_gather_into_tensor_out": ("all_gather", 0),
    "all_gather_into_tensor_coalesced": ("all_gather", 0),
    "reduce_scatter_tensor": ("reduce_scatter", 0),
    "reduce_scatter_tensor_out": ("reduce_scatter", 0),
    "reduce_scatter_tensor_coalesced": ("reduce_scatter", 0),
    "all_to_all_single": ("all_to_all", 0),
    "broadcast": ("broadcast", 0),
    "broadcast_": ("broadcast", 0),
}
_C10D = {
    "allreduce_": ("all_reduce", 0),
    "allreduce_coalesced_": ("all_reduce", 0),
    "allgather_": ("all_gather", 1),
    "_allgather_base_": ("all_gather", 1),
    "allgather_into_tensor_coalesced_": ("all_gather", 1),
    "reduce_scatter_": ("reduce_scatter", 1),
    "_reduce_scatter_base_": ("reduce_scatter", 1),
    "reduce_scatter_tensor_coalesced_": ("reduce_scatter", 1),
    "alltoall_base_": ("all_to_all", 1),
    "alltoall_": ("all_to_all", 1),
    "broadcast_": ("broadcast", 0),
    "reduce_": ("reduce", 0),
    "gather_": ("gather", 1),
    "scatter_": ("scatter", 1),
}
_OPERATORS: Mapping[str, Mapping[str, tuple[str, int]]] = {"_c10d_functional": _FUNCTIONAL, "c10d": _C10D}
_WITHOUT_BYTES = ("wait_tensor", "_wrap_tensor_autograd", "barrier", "monitored_barrier_")


class _Recorder(TorchDispatchMode):
    def __init__(self, found: Counted, names: Mapping[str, str]) -> None:
        super().__init__()
        self.supports_higher_order_operators = True
        self.found, self.names = found, names

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Compile within the block as outside; else torch runs eagerly under any mode."""
        return True

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if any(issubclass(t, DTensor) for t in types):
            return NotImplemented  # its own operators on local tensors, and collectives among them, come here next
        if isinstance(func, HigherOrderOperator):
            _check_without_collectives(func, args)
        elif func.namespace in _OPERATORS:
            self._record(func, args)
        return func(*args, **(kwargs or {}))

    def _record(self, func: Any, args: tuple[Any, ...]) -> None:
        name = func._schema.name.partition("::")[2]
        known = _OPERATORS[func.namespace].get(name)
        if known is None:
            if name in _WITHOUT_BYTES:
                return
            raise RuntimeError(f"{func} is a collective whose bytes `counted` does not know: add it to its tables.")
        kind, position = known
        tensors = list(_tensors(args[position]))
        group = next(g for g in map(_group, args) if g is not None)
        ranks = dist.get_world_size(group)
        size = sum(math.prod(t.shape) * t.element_size() for t in tensors)
        collective = Collective(
            kind=kind,
            axis=self.names.get(group.group_name, group.group_name),
            ranks=ranks,
            size=size * ranks if kind in ("all_gather", "gather") else size,
            dtype=tensors[0].dtype,
            shape=tuple(tensors[0].shape),
        )
        self.found.collectives.append(collective)


def _check_without_collectives(func: HigherOrderOperator, args: tuple[Any, ...]) -> None:
    """Refuse an operator that calls what this does not see; compiled recomputation has some that call a single one."""
    for called in filter(callable, args):
        if not isinstance(called, OpOverload) or called.namespace in _OPERATORS:
            raise RuntimeError(f"{func} calls {called}, and `counted` does not see the collectives within.")


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _group(value: Any) -> dist.ProcessGroup | None:
    """The process group in an argument of an operator: itself, boxed, or by its name."""
    if isinstance(value, dist.ProcessGroup):
        return value
    if isinstance(value, torch.ScriptObject) and "ProcessGroup" in str(value._type()):
        return dist.ProcessGroup.unbox(value)
    if isinstance(value, str):
        return _registered(value)
    return None


def _registered(name: str) -> dist.ProcessGroup | None:
    try:
        return torch._C._distributed_c10d._resolve_process_group(name)  # type: ignore[arg-type]
    except (RuntimeError, ValueError):  # another text, the reduction for instance
        return None
