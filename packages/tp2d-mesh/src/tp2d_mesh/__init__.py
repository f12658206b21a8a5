"""The dp x tp layout, its DeviceMesh and process groups, and the plan that splits a model."""

from importlib.metadata import version

from tp2d_mesh.families import PACKED_FAMILIES, VARLEN_FAMILIES, VERIFIED_FAMILIES
from tp2d_mesh.layout import Coordinates, Layout
from tp2d_mesh.mesh import Mesh, build_mesh
from tp2d_mesh.mpu import MPU
from tp2d_mesh.packed import ModelBatch, check_packed, forward_inputs, model_batch
from tp2d_mesh.plan import ParameterPlan, Plan, Style, check_heads, plan_model
from tp2d_mesh.shards import Box, NamedTensor, Piece, chunk_range, local_boxes, named_tensor, tp_ranges

__version__ = version("tp2d-mesh")

__all__ = [
    "MPU",
    "PACKED_FAMILIES",
    "VARLEN_FAMILIES",
    "VERIFIED_FAMILIES",
    "Box",
    "Coordinates",
    "Layout",
    "Mesh",
    "ModelBatch",
    "NamedTensor",
    "ParameterPlan",
    "Piece",
    "Plan",
    "Style",
    "__version__",
    "build_mesh",
    "check_heads",
    "check_packed",
    "chunk_range",
    "forward_inputs",
    "local_boxes",
    "model_batch",
    "named_tensor",
    "plan_model",
    "tp_ranges",
]
