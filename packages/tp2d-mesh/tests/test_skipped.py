"""The instruments that both engines' tests of skipped steps use."""

import torch
from tp2d_mesh.testing.skipped import HostReads


def test_what_the_host_reads_is_counted_and_nothing_else() -> None:
    """Shows a counter that sees nothing: every engine would pass."""
    tensor = torch.tensor([1.0, 0.0])
    with HostReads() as reads:
        _ = (tensor * 2).isfinite().all() & (tensor.sum() > 0)
    assert reads.count == 0
    with HostReads() as reads:
        _ = tensor[0].item(), float(tensor[1]), bool(tensor.sum()), tensor.nonzero(), tensor[tensor > 0]
    assert reads.count == 5


def test_reads_within_a_call_are_counted_by_both() -> None:
    inner = HostReads()
    read = inner.within(lambda tensor: tensor.item())
    with HostReads() as outer:
        assert read(torch.tensor(3.0)) == 3.0
        torch.tensor(1.0).item()
    assert (inner.count, outer.count) == (1, 2)
