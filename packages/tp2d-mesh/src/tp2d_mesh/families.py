"""The model families whose tensor parallel plan was checked, parameter by parameter, against one process.

A family enters this table only after ``python benchmarks/parity.py --sweep`` has shown every gradient and every weight
after a step equal in float64, on 1x2, 2x2 and 1x4 meshes: below 2e-15 of the parameter's largest, or 4e-7 for those
that compute their norms in float32 whatever they are given. What is not here is refused under tensor parallelism,
because a wrong plan trains on with a plausible loss.
"""

from __future__ import annotations

VERIFIED_FAMILIES: frozenset[str] = frozenset(
    {
        "arcee",
        "cohere",
        "cohere2",
        "cwm",
        "diffllama",
        "ernie4_5",
        "exaone4",
        "gemma",
        "gemma2",
        "gemma3_text",
        "glm",
        "glm4",
        "granite",
        "helium",
        "hunyuan_v1_dense",
        "hyperclovax",
        "internlm3",
        "jais2",
        "llama",
        "ministral",
        "ministral3",
        "mistral",
        "nanochat",
        "nemotron",
        "olmo",
        "olmo2",
        "olmo3",
        "phi",
        "phi3",
        "qwen2",
        "qwen3",
        "seed_oss",
        "smollm3",
        "starcoder2",
        "vaultgemma",
    }
)
"""``config.model_type`` of every checked family."""
