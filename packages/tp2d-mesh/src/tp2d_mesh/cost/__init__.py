"""What training costs: the collectives of a step, the bytes a rank sends for them, the arithmetic of a token."""

from tp2d_mesh.cost.estimate import Estimate, Memory
from tp2d_mesh.cost.flops import flops_per_token
from tp2d_mesh.cost.rings import all_gather_bytes, all_reduce_bytes, reduce_scatter_bytes, transfer_seconds
from tp2d_mesh.cost.step import (
    Step,
    Traffic,
    Unit,
    ddp_step_bytes,
    shard_elements,
    step_traffic,
    totals,
    tp_layer_bytes,
)

__all__ = [
    "Estimate",
    "Memory",
    "Step",
    "Traffic",
    "Unit",
    "all_gather_bytes",
    "all_reduce_bytes",
    "ddp_step_bytes",
    "flops_per_token",
    "reduce_scatter_bytes",
    "shard_elements",
    "step_traffic",
    "totals",
    "tp_layer_bytes",
    "transfer_seconds",
]
