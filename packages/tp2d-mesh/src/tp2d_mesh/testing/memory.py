"""The most bytes of tensors that a block of code has alive at once; see `tp2d_mesh.cost.peak`, where it is."""

from tp2d_mesh.cost.peak import Peak, peak_bytes

__all__ = ["Peak", "peak_bytes"]
