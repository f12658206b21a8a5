"""The four crossings between whole and split activations of tensor parallelism, each with its exact backward.

A *whole* tensor is equal on every tp rank; a *split* one is this rank's chunk along the last dim. Crossing in one
direction in forward means crossing in the other in backward, after Megatron-LM (Shoeybi et al., 2019):

=========  =========================  ==========================
function   forward                    backward
=========  =========================  ==========================
`enter`    whole -> whole, no work    partial -> whole, all-reduce
`total`    partial -> whole, all-reduce  whole -> whole, no work
`gather`   split -> whole, all-gather  whole -> split, no traffic
`split`    whole -> split, no traffic  split -> whole, all-gather
=========  =========================  ==========================

Functional collectives are used throughout, because `torch.compile` can trace them, because recomputation can keep
their results, and because autograd may hand the same gradient buffer to several nodes, so none may be reduced in place.
They are called as operators: the functions around these wrap each result in a subclass.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch.autograd import Function
from tp2d_mesh import chunk_range


def all_reduce_sum(x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    """The sum of `x` over `group`, as a new tensor of the same shape on every rank."""
    return torch.ops._c10d_functional.wait_tensor(
        torch.ops._c10d_functional.all_reduce(x.contiguous(), "sum", group.group_name)
    )


def _all_gather_last(x: torch.Tensor, group: dist.ProcessGroup, size: int) -> torch.Tensor:
    """Every rank's chunk along the last dim, joined to `size` elements; the last chunks may be shorter."""
    world = dist.get_world_size(group)
    widths = [stop - start for start, stop in (chunk_range(size, world, r) for r in range(world))]
    padded = torch.nn.functional.pad(x, (0, widths[0] - x.shape[-1])).movedim(-1, 0).contiguous()
    joined = torch.ops._c10d_functional.wait_tensor(
        torch.ops._c10d_functional.all_gather_into_tensor(padded, world, group.group_name)
    )
    parts = [part[:width] for part, width in zip(joined.split(widths[0]), widths, strict=True)]
    return torch.cat(parts).movedim(0, -1).contiguous()


def _own_chunk(x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
    start, stop = chunk_range(x.shape[-1], dist.get_world_size(group), dist.get_rank(group))
    return x[..., start:stop].contiguous()


class _Enter(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return all_reduce_sum(grad, ctx.group), None


class _Total(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        return all_reduce_sum(x, group)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad, None


class _Gather(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: dist.ProcessGroup, size: int) -> torch.Tensor:
        ctx.group = group
        return _all_gather_last(x, group, size)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return _own_chunk(grad, ctx.group), None, None


class _Split(Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ctx.group, ctx.size = group, x.shape[-1]
        return _own_chunk(x, group)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return _all_gather_last(grad, ctx.group, ctx.size), None


class TensorParallel:
    """The crossings of one tp group.

    Args:
        group: the tp process group; of any size, 1 included.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.size = dist.get_world_size(group)
        self.rank = dist.get_rank(group)

    def enter(self, x: torch.Tensor) -> torch.Tensor:
        """A whole tensor as the input of split projections; its gradient is summed over the group.

        Projections that read the same tensor (query, key and value; gate and up) read one result of it: backward sums
        their gradients on the rank first and pays for one all-reduce, not three.
        """
        return _Enter.apply(x, self.group)

    def total(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of every rank's partial result, whole on every rank."""
        return _Total.apply(x, self.group)

    def gather(self, x: torch.Tensor, size: int) -> torch.Tensor:
        """The whole tensor of `size` elements along its last dim, from every rank's chunk."""
        return _Gather.apply(x, self.group, size)

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """This rank's chunk along the last dim of a whole tensor."""
        return _Split.apply(x, self.group)
