"""The model families whose tensor parallel plan was checked, parameter by parameter, against one process.

A family enters this table only after ``benchmarks/parity.py --sweep`` has shown every gradient equal in float64. What
is not here is refused under tensor parallelism, because a wrong plan trains on with a plausible loss.
"""

from __future__ import annotations

VERIFIED_FAMILIES: frozenset[str] = frozenset({"gemma3_text", "llama", "olmo2", "qwen2", "qwen3"})
"""``config.model_type`` of every checked family."""
