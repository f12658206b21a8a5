"""Which models and rows are measured. Models are built from a configuration; nothing is fetched."""

from dataclasses import dataclass
from typing import Any

_LLAMA_3 = {
    "vocab_size": 128256,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
}
_8B = {
    **_LLAMA_3,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
}
_SCALED_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_TINY = {
    **_LLAMA_3,
    "vocab_size": 259,
    "initializer_range": 0.2,  # at 0.02 attention would hardly reach the loss, nor its faults
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
SHAPES: dict[str, dict[str, Any]] = {
    "8b": _8B,  # Llama 3 8B
    "8b-12": {**_8B, "num_hidden_layers": 12},
    "3b": {  # Llama 3.2 3B
        **_LLAMA_3,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 28,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
        "rope_parameters": _SCALED_ROPE,
    },
    "tiny": _TINY,
    "tiny-tied": {**_TINY, "tie_word_embeddings": True},
}
"""Fields of a Llama configuration by the name of the shape."""

STATE_BYTES = 16
"""Of a parameter: weight, gradient and two moments in fp32."""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A model and the rows of a step.

    Args:
        shape: a key of `SHAPES`.
        rows: rows of a step.
        seq_length: tokens of a row.
        documents: mean tokens of a document in packed rows; None: each row is one document.
    """

    shape: str
    rows: int
    seq_length: int
    documents: int | None

    @property
    def name(self) -> str:
        packed = "unpacked" if self.documents is None else f"packed, documents of {self.documents} on average"
        return f"{self.shape}, {self.rows} x {self.seq_length} tokens, {packed}"


WORKLOADS = tuple(
    Workload(shape=shape, rows=1, seq_length=8192, documents=documents)
    for shape in ("8b-12", "3b", "8b")
    for documents in (512, 1024, 4096, None)
)
TINY_WORKLOADS = (
    Workload(shape="tiny", rows=2, seq_length=128, documents=32),
    Workload(shape="tiny-tied", rows=2, seq_length=128, documents=None),
)


def model_config(shape: str) -> Any:
    """The transformers configuration of a shape."""
    from transformers import AutoConfig

    return AutoConfig.for_model("llama", **SHAPES[shape], bos_token_id=1, eos_token_id=2, pad_token_id=None)


def parameter_total(shape: str) -> int:
    """How many parameters a model of the shape has, a tied one counted once."""
    s = SHAPES[shape]
    hidden, heads = s["hidden_size"], s["num_attention_heads"]
    width = s.get("head_dim", hidden // heads)
    attention = hidden * width * (2 * heads + 2 * s["num_key_value_heads"])
    layer = attention + 3 * hidden * s["intermediate_size"] + 2 * hidden
    tables = 1 if s["tie_word_embeddings"] else 2
    return s["num_hidden_layers"] * layer + tables * s["vocab_size"] * hidden + hidden
