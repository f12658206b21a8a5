"""How this process enters and leaves DeepSpeed: without compiling anything, and on the mesh's own groups.

DeepSpeed keeps process groups, an accelerator and a mode in module globals. `join` sets them from a mesh, so no group
exists twice and every group has the mesh's time-out. `leave` clears them, so another engine on another mesh may follow
in the same process. Read in deepspeed 0.19.8: `utils/groups.py`, `comm/torch.py`, `accelerator/real_accelerator.py`.
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from tp2d_mesh import Mesh


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Within the block, environment variables have these values; afterwards what they had before."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def load(device_type: str) -> None:
    """Import DeepSpeed for one type of device, quickly and quietly.

    - It is told the accelerator. By itself it takes a GPU if it sees one, and warns if it sees none.
    - It is told that its shared-memory all-reduce is not available. Otherwise it starts compilers to look for it, and
      compiles it for two minutes.
    - The first reduction imports its Muon optimizer, used or not, and that import calls `torch.compile`, which takes
      seconds. `TORCHDYNAMO_DISABLE` turns this off.

    Raises:
        ValueError: DeepSpeed works with another type of device in this process already.
    """
    with environment(DS_ACCELERATOR=device_type, TORCHDYNAMO_DISABLE="1"):
        import deepspeed
        import deepspeed.runtime.zero.muon.muon_optimizer
        from deepspeed.accelerator import get_accelerator
    vars(deepspeed.ops)["__compatible_ops__"] = {}
    chosen = get_accelerator().device_name()
    if chosen != device_type:
        raise ValueError(
            f"DeepSpeed has been imported for {chosen!r} in this process and the mesh is on {device_type!r}: use "
            f"device={chosen!r}, or start a new process."
        )


def join(mesh: Mesh) -> None:
    """Make `mesh`'s groups DeepSpeed's own.

    Raises:
        ValueError: another engine is open in this process.
    """
    load(mesh.device.type)
    from deepspeed.comm import init_distributed
    from deepspeed.module_inject import set_autotp_mode
    from deepspeed.utils import groups

    if groups._TENSOR_MODEL_PARALLEL_GROUP is not None:
        raise ValueError(
            "another DeepSpeed engine is open in this process, and DeepSpeed keeps its process groups in module "
            "globals: close() that one first."
        )
    # torch warns about a call that DeepSpeed makes, once on every rank; a user can do nothing about it.
    warnings.filterwarnings("ignore", message=".*all_gather_into_tensor.* is deprecated", category=FutureWarning)
    init_distributed(verbose=False)
    groups._TENSOR_MODEL_PARALLEL_GROUP = groups._MODEL_PARALLEL_GROUP = mesh.tp_group
    groups._DATA_PARALLEL_GROUP = mesh.dp_group
    set_autotp_mode(training=True)


def leave() -> None:
    """Forget the groups that `join` set. The groups themselves live on: they belong to the mesh."""
    from deepspeed.module_inject import set_autotp_mode
    from deepspeed.utils import groups

    groups._release_process_group_references()
    set_autotp_mode(training=False)
