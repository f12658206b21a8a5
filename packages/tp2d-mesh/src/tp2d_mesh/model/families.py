"""The model families that were checked against one process: under tensor parallelism, and on packed rows.

A family enters `VERIFIED_FAMILIES` only after `python benchmarks/parity.py --sweep` has shown every gradient, and every
weight after a step, equal in float64 on 1x2, 2x2 and 1x4 meshes: below 2e-15 of the parameter's largest, or 4e-7 for
families that always compute their norms in float32. Every other family is refused under tensor parallelism, because a
wrong plan trains on with a plausible loss.
"""

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
"""`config.model_type` of every family checked under tensor parallelism."""

PACKED_FAMILIES: frozenset[str] = frozenset(
    {
        "apertus",
        "arcee",
        "aria_text",
        "bitnet",
        "cohere",
        "cohere2",
        "cohere2_moe",
        "cwm",
        "deepseek_v2",
        "deepseek_v3",
        "diffllama",
        "ernie4_5",
        "exaone4",
        "exaone_moe",
        "flex_olmo",
        "fuyu",
        "gemma",
        "gemma2",
        "gemma3_text",
        "gemma4_unified_text",
        "glm",
        "glm4",
        "glm4_moe",
        "gpt-sw3",
        "gpt2",
        "gpt_bigcode",
        "gpt_neox",
        "gpt_neox_japanese",
        "granite",
        "granite_swa",
        "granitemoe",
        "granitemoe_swa",
        "granitemoeshared",
        "helium",
        "hrm_text",
        "hunyuan_v1_dense",
        "hunyuan_v1_moe",
        "hyperclovax",
        "internlm3",
        "iquestcoder",
        "jais2",
        "jetmoe",
        "llama",
        "minicpm3",
        "minimax_m2",
        "ministral",
        "ministral3",
        "mistral",
        "mixtral",
        "modernbert-decoder",
        "moshi",
        "nanochat",
        "nemotron",
        "olmo",
        "olmo2",
        "olmo3",
        "olmoe",
        "persimmon",
        "phi",
        "phi3",
        "phimoe",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_moe",
        "seed_oss",
        "smollm3",
        "stablelm",
        "starcoder2",
        "vaultgemma",
        "youtu",
    }
)
"""Every family whose packed rows compute what their documents compute alone, under the attentions that take a mask.

A family enters this table and the next only after `python benchmarks/parity_packed.py --sweep` has shown the loss and
every gradient equal in float64: below 1e-14 of the parameter's largest, or 1e-6 for families with parts that always
compute in float32. It needs no tensor parallel plan. In the other families the mask ignores positions, or a
convolution, a recurrent state or a count of positions runs on from one document to the next.
"""

VARLEN_FAMILIES: frozenset[str] = PACKED_FAMILIES - {"gpt_neox_japanese", "hrm_text", "phimoe", "qwen2_moe"} | {
    "afmoe",
    "gpt_oss",
}
"""The same under flash attention, which is given the documents' ends in place of a mask."""
