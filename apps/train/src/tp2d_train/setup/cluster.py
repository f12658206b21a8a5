"""Whether there is a Ray cluster already; needs neither Ray nor torch."""

import os
import sys


def has_cluster() -> bool:
    """Whether Ray workers would start on a cluster that exists, whose devices only Ray knows, not on this machine."""
    ray = sys.modules.get("ray")
    return bool(os.environ.get("RAY_ADDRESS")) or (ray is not None and ray.is_initialized())
