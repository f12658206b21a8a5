"""DTensor tensor parallelism and FSDP2 over one dp x tp mesh, with exact gradients."""

from importlib.metadata import version

from tp2d_mesh import PRECISIONS, EngineSpec, Precision

from tp2d_fsdp2.engine import FSDP2Engine, check
from tp2d_fsdp2.families import COMPILED_FAMILIES
from tp2d_fsdp2.parallelize import parallelize
from tp2d_fsdp2.planned.estimate import estimate

__version__ = version("tp2d-fsdp2")

__all__ = [
    "COMPILED_FAMILIES",
    "PRECISIONS",
    "EngineSpec",
    "FSDP2Engine",
    "Precision",
    "__version__",
    "check",
    "estimate",
    "parallelize",
]
