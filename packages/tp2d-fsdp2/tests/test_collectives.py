"""The crossings between whole and split activations: values, and gradients against plain arithmetic."""

import pytest
import torch
from tp2d_fsdp2.collectives import TensorParallel
from tp2d_mesh import Mesh, chunk_range
from tp2d_mesh.testing import run_on_mesh
from tp2d_mesh.testing.counted import counted

SIZE = 7  # does not divide by 4: the last rank's chunk is shorter


def whole_input() -> torch.Tensor:
    return torch.arange(2 * SIZE, dtype=torch.float64).view(2, SIZE) / 10


def weighted(x: torch.Tensor) -> torch.Tensor:
    """A scalar whose gradient differs from element to element."""
    return (x * torch.arange(1, x.numel() + 1, dtype=x.dtype).view_as(x)).sum()


def gather_of_split(mesh: Mesh) -> tuple[torch.Tensor, torch.Tensor]:
    tp, x = TensorParallel(mesh.tp_group), whole_input().requires_grad_()
    out = tp.gather(tp.split(x), SIZE)
    weighted(out).backward()
    return out, x.grad


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_gather_undoes_split_in_both_directions(tp: int) -> None:
    x = whole_input().requires_grad_()
    weighted(x).backward()
    for out, grad in run_on_mesh(gather_of_split, tp=tp):
        assert torch.equal(out, x)
        assert torch.equal(grad, x.grad)


def two_layers(mesh: Mesh) -> tuple[torch.Tensor, torch.Tensor]:
    """Column- then row-wise: the pair every attention and MLP block is made of."""
    tp, x = TensorParallel(mesh.tp_group), whole_input().requires_grad_()
    start, stop = chunk_range(SIZE, mesh.layout.tp, mesh.tp_rank)
    first, second = (m[start:stop] if i == 0 else m[:, start:stop] for i, m in enumerate(matrices()))
    out = tp.total((tp.enter(x) @ first.T) @ second.T)
    weighted(out).backward()
    return out, x.grad


def matrices() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(SIZE, SIZE, dtype=torch.float64, generator=generator) for _ in range(2))


def test_column_then_row_equals_the_whole_product() -> None:
    """Shows a missing all-reduce in forward (the output) or backward (the gradient of the input)."""
    x = whole_input().requires_grad_()
    first, second = matrices()
    out = (x @ first.T) @ second.T
    weighted(out).backward()
    for found, grad in run_on_mesh(two_layers, tp=4):
        torch.testing.assert_close(found, out.detach(), rtol=1e-13, atol=1e-13)
        torch.testing.assert_close(grad, x.grad, rtol=1e-13, atol=1e-13)


def shared_crossing(mesh: Mesh) -> tuple[int, torch.Tensor]:
    tp, x = TensorParallel(mesh.tp_group), whole_input().requires_grad_()
    with counted(mesh) as seen:
        entered = tp.enter(x)
        (entered.sum() + (3 * entered).sum()).backward()
    return seen.calls("all_reduce", axis="tp"), x.grad


def test_projections_of_one_tensor_share_a_crossing() -> None:
    """Shows the saving lost: two all-reduces for one."""
    for calls, grad in run_on_mesh(shared_crossing, tp=2):
        assert calls == 1
        assert torch.equal(grad, torch.full_like(grad, 8.0))  # 1 + 3 on each of two ranks
