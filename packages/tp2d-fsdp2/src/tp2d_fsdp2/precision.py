"""FSDP2's view of a precision."""

from torch.distributed.fsdp import MixedPrecisionPolicy
from tp2d_mesh import Precision


def fsdp_policy(precision: Precision) -> MixedPrecisionPolicy:
    """The policy that keeps master weights sharded, gathers and computes in `compute`, and sums in `reduce`."""
    if precision.master == precision.compute == precision.reduce:
        return MixedPrecisionPolicy()
    return MixedPrecisionPolicy(param_dtype=precision.compute, reduce_dtype=precision.reduce)
