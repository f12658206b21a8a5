"""The model families that were checked: under tensor parallelism, on packed rows, and for looking ahead.

A family enters `VERIFIED_FAMILIES` only after `python benchmarks/parity.py --sweep` has shown every gradient, and every
weight after a step, equal in float64 on 1x2, 2x2 and 1x4 meshes: below 2e-15 of the parameter's largest, or 4e-7 for
families that always compute their norms in float32. Every other family is refused under tensor parallelism, because a
wrong plan trains on with a plausible loss.
"""

from collections.abc import Mapping
from typing import Any

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

DOCUMENT_FAMILIES: frozenset[str] = PACKED_FAMILIES - {
    "gemma2",
    "gpt_neox_japanese",
    "granite_swa",
    "granitemoe_swa",
    "nemotron",
    "phimoe",
    "qwen2_moe",
    "stablelm",
    "vaultgemma",
} | {"afmoe"}
"""The same under our own attention, which is given the documents' ends and makes no mask, packed rows or not.

Left out are soft caps and sinks, which it does not have (gemma2 and vaultgemma, both granite families), code that drops
the ends (nemotron, stablelm; it raises), code that does not hand on its sliding window (phimoe, qwen2_moe), and code
that takes no attention but its own (gpt_neox_japanese).
"""

_CAUSAL = """
    afmoe apertus arcee aria_text axk1 axk2 bailing_hybrid bamba bart beam bigbird_pegasus biogpt bitnet
    blenderbot blenderbot-small bloom codegen cohere cohere2 cohere2_moe cohere_compass_text ctrl cwm dbrx
    deepseek_v2 deepseek_v3 deepseek_v32 deepseek_v4 diffllama doge dots1 dots3_note dots3_note_text emu3 ernie4_5
    ernie4_5_moe exaone4 exaone_moe falcon falcon_h1 falcon_mamba flex_olmo flint fuyu gemma gemma2 gemma3
    gemma3_text gemma3n_text gemma4 gemma4_text gemma4_unified gemma4_unified_text git glm glm4 glm4_moe
    glm4_moe_lite glm_moe_dsa got_ocr2 gpt-sw3 gpt2 gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese gpt_oss gptj
    granite granite_swa granitemoe granitemoe_swa granitemoehybrid granitemoeshared helium hrm_text
    hunyuan_v1_dense hunyuan_v1_moe hy_v3 hy_v4 hyperclovax inkling2_text inkling_text internlm3 iquestcoder jais2
    jamba jetmoe kimi_linear kolibri1 laguna lfm2 lfm2_moe lfm3 llama llama4 llama4_text longcat_flash mamba
    mamba2 marian mbart mellum mimo_v2_flash minicpm3 minimax minimax_m2 minimax_m3_vl_text ministral ministral3
    mistral mixtral mllama modernbert-decoder moshi moss_transcribe_diarize mpt mvp nanochat nemotron nemotron_h
    olmo olmo2 olmo3 olmo_hybrid olmoe openai-gpt opt pegasus persimmon phi phi3 phi4_multimodal phimoe plbart
    qwen2 qwen2_moe qwen3 qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text qwen3_moe qwen3_next qwen4_exp
    qwen4_exp_text recurrent_gemma rwkv seed_oss smollm3 solar_open stablelm starcoder2 trocr vaultgemma whisper
    xglm xlstm youtu zamba zamba2 zaya
"""
CAUSAL_FAMILIES: frozenset[str] = frozenset(_CAUSAL.split())
"""Every family without a logit that depends on a later token, as its configuration comes.

A family enters this table only after `python benchmarks/causality.py` has shown it.
"""

_DECODER = {"is_decoder": True}
CAUSAL_IF: Mapping[str, Mapping[str, Any]] = {
    "bert": _DECODER,
    "bert-generation": _DECODER,
    "big_bird": {"is_decoder": True, "attention_type": "original_full"},
    "camembert": _DECODER,
    "cpmant": {},
    "data2vec-text": _DECODER,
    "electra": _DECODER,
    "ernie": _DECODER,
    "megatron-bert": _DECODER,
    "prophetnet": {},
    "rembert": _DECODER,
    "roberta": _DECODER,
    "roberta-prelayernorm": _DECODER,
    "roc_bert": _DECODER,
    "roformer": _DECODER,
    "xlm": {"causal": True},
    "xlm-roberta": _DECODER,
    "xlm-roberta-xl": _DECODER,
    "xlnet": {"attn_type": "uni"},
    "xmod": _DECODER,
}
"""Every family that looks ahead as it comes, and the settings that the same script has shown to make it causal.

No settings: none is known that does. big_bird attends at random too, so that as it comes nothing can be measured.
"""
