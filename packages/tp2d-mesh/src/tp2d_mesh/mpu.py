"""The mesh under the names of Megatron's parallel state, as DeepSpeed asks them of an `mpu` object.

Every group is the mesh's own object, so no group exists twice. The methods are those that deepspeed 0.19.8 calls in
`utils/groups.py`, `utils/bwc.py`, `runtime/engine.py` and `runtime/zero/*.py`. Those of pipeline and sequence
parallelism are left out: DeepSpeed then takes their sizes as 1.
"""

import torch.distributed as dist

from tp2d_mesh.mesh import Mesh


class MPU:
    """Megatron's "model parallel unit" over `mesh`; "model parallel" is its older name of tensor parallel."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    def get_tensor_model_parallel_group(self) -> dist.ProcessGroup:
        return self._mesh.tp_group

    def get_tensor_model_parallel_rank(self) -> int:
        return self._mesh.tp_rank

    def get_tensor_model_parallel_world_size(self) -> int:
        return self._mesh.layout.tp

    def get_tensor_model_parallel_src_rank(self) -> int:
        """The global rank of the first member of this rank's tp group, from which to broadcast."""
        return self._mesh.layout.rank(dp_rank=self._mesh.dp_rank, tp_rank=0)

    get_model_parallel_group = get_tensor_model_parallel_group
    get_model_parallel_rank = get_tensor_model_parallel_rank
    get_model_parallel_world_size = get_tensor_model_parallel_world_size
    get_model_parallel_src_rank = get_tensor_model_parallel_src_rank

    def get_data_parallel_group(self) -> dist.ProcessGroup:
        return self._mesh.dp_group

    def get_data_parallel_rank(self) -> int:
        return self._mesh.dp_rank

    def get_data_parallel_world_size(self) -> int:
        return self._mesh.layout.dp

    def get_data_parallel_src_rank(self) -> int:
        """The global rank of the first member of this rank's dp group, from which to broadcast."""
        return self._mesh.layout.rank(dp_rank=0, tp_rank=self._mesh.tp_rank)

    def get_data_parallel_group_ranks(self) -> list[int]:
        """The global ranks of this rank's dp group."""
        return list(self._mesh.layout.dp_groups()[self._mesh.tp_rank])
