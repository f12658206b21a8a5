"""The model families whose gradients under DeepSpeed AutoTP were checked, parameter by parameter, against one process.

A family enters this table only after `python benchmarks/parity_autotp.py --sweep` has shown every gradient, and every
weight after a step, equal on 1x2, 2x2 and 1x4 meshes: below 5e-7 of the parameter's largest. Every other family is
refused under tensor parallelism. Five that the engine fsdp2 takes are not here: DeepSpeed does not split the input
embedding of gemma, gemma2 and vaultgemma, breaks phi3's attention, and diffllama is 2e-6 off.
"""

AUTOTP_FAMILIES: frozenset[str] = frozenset(
    {
        "arcee",
        "cohere",
        "cohere2",
        "cwm",
        "ernie4_5",
        "exaone4",
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
        "qwen2",
        "qwen3",
        "seed_oss",
        "smollm3",
        "starcoder2",
    }
)
"""`config.model_type` of every checked family."""
