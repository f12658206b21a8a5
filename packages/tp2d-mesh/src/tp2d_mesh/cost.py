"""What training costs: the bytes a rank sends, the seconds a link takes for them, the arithmetic of a token.

The collectives are counted as ring algorithms send them, which is the least unless the network itself reduces. `size`
is the whole tensor's, in bytes; `ranks` is the size of the group. A result is the bytes that one rank sends, and it
receives as many. Latency, overlap with compute, and the embedding and head are not counted.
"""

from typing import Any


def all_reduce_bytes(size: float, *, ranks: int) -> float:
    """Bytes a rank sends to sum a tensor of `size` bytes over `ranks`: `2 (n - 1) / n * size`."""
    return reduce_scatter_bytes(size, ranks=ranks) + all_gather_bytes(size, ranks=ranks)


def reduce_scatter_bytes(size: float, *, ranks: int) -> float:
    """Bytes a rank sends to sum a tensor of `size` bytes and keep 1/n of the sum: `(n - 1) / n * size`."""
    return _ring(size, ranks)


def all_gather_bytes(size: float, *, ranks: int) -> float:
    """Bytes a rank sends to assemble a tensor of `size` bytes from its n shards: `(n - 1) / n * size`."""
    return _ring(size, ranks)


def tp_layer_bytes(*, batch: int, seq: int, hidden: int, itemsize: int, tp: int) -> float:
    """Bytes a rank sends for one transformer layer of one micro-batch, forward and backward.

    Attention and MLP each all-reduce the activations once forward (after the row-wise projection) and once backward
    (before the column-wise one): four all-reduces of `batch * seq * hidden * itemsize` bytes. Activation
    checkpointing, which repeats the forward, is not counted.

    Args:
        batch: rows of the micro-batch.
        seq: tokens of a row.
        hidden: the model's hidden size.
        itemsize: bytes of an element of the activations (2 in bf16).
        tp: tensor-parallel size.
    """
    return 4 * all_reduce_bytes(batch * seq * hidden * itemsize, ranks=tp)


def fsdp_step_bytes(*, parameter_bytes: float, gradient_bytes: float, dp: int, micro_batches: int = 1) -> float:
    """Bytes a rank sends over dp in one optimizer step of FSDP (ZeRO-3).

    Per micro-batch: the parameters are gathered for the forward and again for the backward, and the gradients are
    reduce-scattered.

    Args:
        parameter_bytes: size of the parameters that the dp group shares, as they travel: all of the model's divided by
            tp, in the compute dtype.
        gradient_bytes: size of their gradients, in the dtype of the reduction.
        dp: data-parallel size.
        micro_batches: gradient accumulation steps.
    """
    gathers = 2 * all_gather_bytes(parameter_bytes, ranks=dp)
    return micro_batches * (gathers + reduce_scatter_bytes(gradient_bytes, ranks=dp))


def ddp_step_bytes(*, gradient_bytes: float, dp: int) -> float:
    """Bytes a rank sends over dp in one optimizer step of DDP or ZeRO-1/2: one all-reduce of the gradients.

    ZeRO-1/2 reduce-scatters the gradients and gathers the updated parameters. That is as much, if both have one dtype.

    Args:
        gradient_bytes: size of the gradients that the dp group shares: all of the model's divided by tp.
        dp: data-parallel size.
    """
    return all_reduce_bytes(gradient_bytes, ranks=dp)


def transfer_seconds(sent_bytes: float, *, bytes_per_second: float) -> float:
    """Seconds in which a link of `bytes_per_second` in each direction carries `sent_bytes`.

    Raises:
        ValueError: the bandwidth is not positive.
    """
    if not bytes_per_second > 0:
        raise ValueError(f"bytes_per_second={bytes_per_second} is not a bandwidth: give a positive number.")
    return sent_bytes / bytes_per_second


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


def _ring(size: float, ranks: int) -> float:
    if ranks < 1 or size < 0:
        raise ValueError(f"size={size} bytes over ranks={ranks}: give a size of at least 0 and at least 1 rank.")
    return (ranks - 1) / ranks * size
