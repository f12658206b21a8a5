"""Small Hugging Face folders, written as users write them."""

import json
from pathlib import Path
from typing import Any

LLAMA: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 4096,
    "max_position_embeddings": 64,
}


def save_llama(folder: Path, **changes: Any) -> Path:
    """A Llama-shaped model with the built-in tokenizer, by `save_pretrained`."""
    from tp2d_data import load_tokenizer
    from transformers import AutoModelForCausalLM, LlamaConfig

    AutoModelForCausalLM.from_config(LlamaConfig(**{**LLAMA, **changes})).save_pretrained(folder)
    load_tokenizer("builtin:tiny").save_pretrained(folder)
    return folder


def save_config(folder: Path, **values: Any) -> Path:
    """A folder with a `config.json` and nothing else."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(values))
    return folder
