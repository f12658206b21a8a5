"""The dp x tp layout, its DeviceMesh and process groups, the plan that splits a model, and what both engines share."""

from importlib.metadata import version

from tp2d_mesh.engine import OPTIMIZERS, RECOMPUTATION, EngineSpec, Progress, StepStats, no_progress
from tp2d_mesh.layout import Coordinates, Layout
from tp2d_mesh.mesh import Mesh, build_mesh
from tp2d_mesh.model.causality import Reach, Verdict, check_causal, measure_reach
from tp2d_mesh.model.families import (
    CAUSAL_FAMILIES,
    CAUSAL_IF,
    DOCUMENT_FAMILIES,
    PACKED_FAMILIES,
    VARLEN_FAMILIES,
    VERIFIED_FAMILIES,
)
from tp2d_mesh.model.loss.tokens import IGNORED
from tp2d_mesh.model.packed import ModelBatch, check_packed, forward_inputs, model_batch
from tp2d_mesh.model.plan import ParameterPlan, Plan, Style, check_heads, plan_model
from tp2d_mesh.model.weights import build_skeleton
from tp2d_mesh.mpu import MPU
from tp2d_mesh.precision import PRECISIONS, Precision, resolve_precision
from tp2d_mesh.shards import Box, NamedTensor, Piece, chunk_range, local_boxes, named_tensor, tp_ranges

__version__ = version("tp2d-mesh")

__all__ = [
    "CAUSAL_FAMILIES",
    "CAUSAL_IF",
    "DOCUMENT_FAMILIES",
    "IGNORED",
    "MPU",
    "OPTIMIZERS",
    "PACKED_FAMILIES",
    "PRECISIONS",
    "RECOMPUTATION",
    "VARLEN_FAMILIES",
    "VERIFIED_FAMILIES",
    "Box",
    "Coordinates",
    "EngineSpec",
    "Layout",
    "Mesh",
    "ModelBatch",
    "NamedTensor",
    "ParameterPlan",
    "Piece",
    "Plan",
    "Precision",
    "Progress",
    "Reach",
    "StepStats",
    "Style",
    "Verdict",
    "__version__",
    "build_mesh",
    "build_skeleton",
    "check_causal",
    "check_heads",
    "check_packed",
    "chunk_range",
    "forward_inputs",
    "local_boxes",
    "measure_reach",
    "model_batch",
    "named_tensor",
    "no_progress",
    "plan_model",
    "resolve_precision",
    "tp_ranges",
]
