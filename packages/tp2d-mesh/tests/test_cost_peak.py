"""The most bytes that are alive at once, counted."""

import torch
from tp2d_mesh.cost.peak import peak_bytes


def test_what_dies_is_taken_off_and_views_and_in_place_changes_take_nothing() -> None:
    """Shows storages that are counted for ever, or once per view; three of 4,000 bytes are alive at most."""
    given = torch.zeros(1000)
    with peak_bytes() as peak:
        for _ in range(5):
            one = given + 1
            two = one * 2
            three = two + one
            three.view(10, 100).mul_(2)
            del one, two, three
        assert peak.now() == 0
    assert peak.bytes == 12_000


def test_what_backward_makes_is_counted_on_the_meta_device_too() -> None:
    """A sine and its gradient: the sine, the product's and the result's ones, and no more than four at once."""
    x = torch.empty(1000, device="meta", requires_grad=True)
    with peak_bytes() as peak:
        x.sin().sum().backward()
        forward = peak.now()
    assert forward >= 4000 and 8000 <= peak.bytes <= 16_100
