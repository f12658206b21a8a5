"""DTensor tensor parallelism and FSDP2 over one dp x tp mesh, with exact gradients."""

from importlib.metadata import version

from tp2d_fsdp2.engine import FSDP2Engine
from tp2d_fsdp2.parallelize import parallelize
from tp2d_fsdp2.precision import PRECISIONS, Precision, precision_by_name

__version__ = version("tp2d-fsdp2")

__all__ = [
    "PRECISIONS",
    "FSDP2Engine",
    "Precision",
    "__version__",
    "parallelize",
    "precision_by_name",
]
