"""The arithmetic of a token."""

from typing import Any


def flops_per_token(config: Any, *, parameters: int, seq_length: int) -> float | None:
    """Floating-point operations of forward and backward for one token of a dense causal decoder.

    `6 N + 12 L H S`: N parameters that multiply (all but an input embedding that is not also the head), L layers,
    H the width of all heads, S the row length; attention counted in full, without recomputation, as in appendix B of
    the PaLM paper (arXiv:2204.02311).

    Args:
        config: the model's transformers configuration.
        parameters: the number of the model's parameters, a tied one once.
        seq_length: tokens in a row.

    Returns:
        None for a mixture of experts, where only some parameters multiply.
    """
    text = config.get_text_config()
    if any(getattr(text, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts")):
        return None
    looked_up = 0 if text.tie_word_embeddings else text.vocab_size * text.hidden_size
    heads = text.num_attention_heads
    width = heads * (getattr(text, "head_dim", None) or text.hidden_size // heads)
    return 6.0 * (parameters - looked_up) + 12.0 * text.num_hidden_layers * width * seq_length
