"""The model families whose layers compile whole."""

from tp2d_mesh import VERIFIED_FAMILIES

COMPILED_FAMILIES: frozenset[str] = VERIFIED_FAMILIES
"""`config.model_type` of every family whose layer was shown to be one graph, with the gradients of the plain layer.

`python benchmarks/parity.py --sweep --compile` shows it, with activation_checkpointing none, selective and full.
"""
