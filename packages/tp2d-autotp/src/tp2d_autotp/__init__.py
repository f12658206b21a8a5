"""DeepSpeed AutoTP and ZeRO over the same dp x tp mesh, with the same numbers as one process.

DeepSpeed is imported when an engine opens, not before.
"""

from importlib.metadata import version

from tp2d_mesh import PRECISIONS, Precision

from tp2d_autotp.config import AutoTPSpec, deepspeed_config
from tp2d_autotp.engine import AutoTPEngine, check
from tp2d_autotp.families import AUTOTP_FAMILIES
from tp2d_autotp.specs import check_plan, check_specs, layer_specs, tensor_parallel_section
from tp2d_autotp.user_config import USER_KEYS, read_user_config

__version__ = version("tp2d-autotp")

__all__ = [
    "AUTOTP_FAMILIES",
    "PRECISIONS",
    "USER_KEYS",
    "AutoTPEngine",
    "AutoTPSpec",
    "Precision",
    "__version__",
    "check",
    "check_plan",
    "check_specs",
    "deepspeed_config",
    "layer_specs",
    "read_user_config",
    "tensor_parallel_section",
]
