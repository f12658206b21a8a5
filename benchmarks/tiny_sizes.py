"""Sizes at which a tiny model of any causal language model type of transformers can be built, composite ones too."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from parity_packed import LATENT, ROUTED, SIZES
from tp2d_mesh.testing.parity import TINY

SMALL: dict[str, Any] = {
    **TINY,
    **dict.fromkeys(("d_model", "embed_dim", "hidden_size_per_layer_input"), 32),
    **dict.fromkeys(("depth", "encoder_layers", "decoder_layers", "num_encoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("num_heads", "encoder_attention_heads", "decoder_attention_heads", "n_routed_experts"), 4),
    **dict.fromkeys(("num_encoder_attention_heads", "num_decoder_attention_heads", "num_experts"), 4),
    **dict.fromkeys(("num_local_experts", "num_kv_heads"), 4),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "ffn_dim"), 50),
    **dict.fromkeys(("moe_intermediate_size", "q_lora_rank", "kv_lora_rank"), 16),
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts"), 1),
    **dict.fromkeys(("shared_expert_intermediate_size", "dense_intermediate_size", "shared_intermediate_size"), 16),
    **dict.fromkeys(("index_head_dim", "rotary_dim"), 8),
    **dict.fromkeys(("vocab_size_per_layer_input", "encoder_hash_byte_group_vocab"), 99),
    **dict.fromkeys(("linear_head_dim", "linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("linear_num_heads", "linear_num_value_heads"), 4),
    "linear_num_key_heads": 2,
    "hidden_size_global": 32,
    "num_experts_per_tok": 2,
}
"""What is set where a configuration has a field of this name, in its parts too."""
OWN: dict[str, dict[str, Any]] = {
    **SIZES,
    "axk1": {**LATENT, **ROUTED},
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8},
    "big_bird": {"block_size": 1, "num_random_blocks": 1},
    "bigbird_pegasus": {"block_size": 1, "num_random_blocks": 1},
    "codegen": {"rotary_dim": 8},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "dbrx": {
        "attn_config": {"rope_theta": 10000.0, "kv_n_heads": 4, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 16},
    },
    "dots1": {**ROUTED, "n_shared_experts": 1},
    "dots3_note": {
        "vision_config": {"num_hidden_layers": 2, "mlp_layer_types": ["dense"] * 2, "adapter_out_dim": 32},
        "audio_config": {"adapter_out_dim": 32},
    },
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 8},
    "granitemoehybrid": {"mamba_n_heads": 8, "mamba_d_head": 8},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "mimo_v2_flash": {"num_attention_heads": 8},
    "plbart": {"encoder_attention_heads": 4, "decoder_attention_heads": 4},
    "whisper": {"encoder_attention_heads": 4, "decoder_attention_heads": 4},
    "reformer": {
        "attention_head_size": 8,
        "attn_layers": ["local", "lsh"],
        "axial_pos_shape": [4, 6],
        "axial_pos_embds_dim": [16, 16],
        "local_attn_chunk_length": 4,
        "lsh_attn_chunk_length": 4,
        "hash_seed": 0,
    },
    "xlnet": {"d_head": 8},
    "xmod": {"default_language": "en_XX", "languages": ["en_XX"]},
}
"""What makes a type tiny, or its configuration whole, where `TINY` and `SMALL` do not."""


def tiny_sizes(family: str) -> Iterator[dict[str, Any]]:
    """Ways to make a type tiny: the fields that it and its parts have, or all of `TINY`."""
    own = OWN.get(family, {})
    default = default_config(family)
    if default is not None:
        yield {**known_fields(default), **own}
    yield {**TINY, **own}
    if default is not None:
        yield {**{k: v for k, v in known_fields(default).items() if k != "num_hidden_layers"}, **own}


def default_config(family: str) -> Any:
    """The type's default configuration; None where it has none."""
    from transformers import AutoConfig

    try:
        return AutoConfig.for_model(family)
    except Exception:  # some demand their parts
        return None


def known_fields(config: Any) -> dict[str, Any]:
    """`SMALL`, as far as the configuration has fields of these names; of its parts too, with their types."""
    names = {field.name for field in dataclasses.fields(config)} | set(config.attribute_map)
    sizes = {name: value for name, value in SMALL.items() if name in names}
    parts = {name: getattr(config, name, None) for name in config.sub_configs}
    return sizes | {
        name: {**known_fields(part), "model_type": part.model_type} for name, part in parts.items() if part is not None
    }
