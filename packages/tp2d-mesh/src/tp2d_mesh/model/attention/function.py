"""An attention function of our own for transformers' models, which is given the documents' ends and makes no mask.

On a GPU of compute capability 8.0 in bf16 or fp16 it is torch's variable length attention, on the CPU each document by
itself (`packed_kernel`), and elsewhere SDPA with a mask made from the ends. It is registered as `tp2d`, a name that
switches none of transformers' paths, and without a mask function, so that transformers neither makes a mask nor
searches the positions for documents. A sliding window is applied here, on rows of one text too.

It raises where what it needs does not arrive: some models drop the arguments they do not know, and would mix documents
in silence. It is the default for `DOCUMENT_FAMILIES`, which `python benchmarks/parity_packed.py --sweep` has shown
exact with it; every other family keeps the attention that it comes with.
"""

from typing import Any

import torch
import torch.nn.functional as F

from tp2d_mesh.model.attention.packed_kernel import band, packed_attention, pad_heads, ungroup
from tp2d_mesh.model.families import DOCUMENT_FAMILIES

ATTENTION = "tp2d"
"""The name under which the function is registered with transformers, an `attn_implementation`."""

EACH, VARLEN, MASK = "each", "varlen", "mask"
HALVES = frozenset({torch.bfloat16, torch.float16})
"""What torch's variable length attention takes."""
_WIDEST = 256  # heads that it takes


def register_attention() -> None:
    """Make the function known to transformers; it may be called again."""
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION, document_attention)


def choose_attention(config: Any, *, requested: str | None, own_code: bool = False) -> str | None:
    """The attention of a model: as asked for, else ours where it was shown exact, else None for the model's default.

    Args:
        config: the model's transformers configuration.
        requested: transformers' name of an attention, or None.
        own_code: the model's code comes from its repository and was not checked.

    Raises:
        ValueError: ours was asked for and cannot be had.
    """
    if requested not in (None, ATTENTION):
        return requested
    reason = _obstacle(config, own_code=own_code)
    if reason is None:
        return ATTENTION
    if requested == ATTENTION:
        raise ValueError(f"attn_implementation={ATTENTION!r} cannot be used: {reason}: leave attn_implementation out.")
    return None


def _obstacle(config: Any, *, own_code: bool) -> str | None:
    """What keeps a model from our attention; None: nothing."""
    if own_code:
        return "the model brings code of its own"
    if config.model_type not in DOCUMENT_FAMILIES:
        return f"model type {config.model_type!r} has not been shown to be exact with it"
    for name, value in vars(config.get_text_config()).items():
        attends = "att" in name and isinstance(value, int | float)
        if attends and value and ("drop" in name or "softcap" in name):
            return f"it has neither dropout nor soft caps, and the configuration has {name}={value}"
    return None


def kernel_for(device: torch.device) -> str:
    """How packed rows are computed on a device; `document_attention` takes it as `document_kernel`."""
    if device.type == "cpu":
        return EACH
    if device.type != "cuda" or torch.version.hip is not None:
        return MASK
    return VARLEN if torch.cuda.get_device_capability(device) >= (8, 0) else MASK


def document_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    document_kernel: str | None = None,
    document_ends: torch.Tensor | None = None,
    longest_document: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each document, or within each row; transformers calls it.

    Args:
        module: the attention module.
        query: `(batch, heads, seq, dim)`.
        key: `(batch, kv heads, seq, dim)`.
        value: `(batch, kv heads, seq, value dim)`.
        attention_mask: None.
        dropout: 0.
        scaling: of the scores; None: 1 / sqrt(dim).
        sliding_window: a token sees so many, itself counted; None: all before it.
        is_causal: None: what `module.is_causal` says; it has to be true.
        document_kernel: see `kernel_for`; `model_batch` gives it with every batch, packed or not.
        document_ends: `(documents + 1,)` int32 on the same device; None: each row is one text.
        longest_document: a tensor whose length bounds that of a document. A length is no value: nobody waits for the
            device to read it, and compiled code takes any.
        others: what transformers gives besides; soft caps, sinks and biases are refused.

    Returns:
        `(batch, seq, heads, value dim)`, and None for the weights.

    Raises:
        ValueError: the ends did not arrive, or something is asked for that would be left out.
    """
    if document_kernel is None:
        raise ValueError(
            f"{type(module).__name__} was called without the documents' ends: call the model with the arguments of "
            f"tp2d_mesh.model_batch; if so, its code drops them: use attn_implementation='sdpa'."
        )
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    _refuse_others({**others, "attention_mask": attention_mask, "dropout": dropout or None}, causal=causal)
    if query.shape[2] != key.shape[2]:
        raise ValueError(f"{query.shape[2]} queries and {key.shape[2]} keys: our attention takes no cache.")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    seq, width = query.shape[2], value.shape[-1]
    window = sliding_window if sliding_window is not None and sliding_window < seq else 0
    if document_ends is None and not window:
        key, value = ungroup(query, key, value)
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
        return out.transpose(1, 2).contiguous(), None
    halved = query.dtype in HALVES and max(query.shape[-1], width) <= _WIDEST
    if document_kernel == MASK or (document_kernel == VARLEN and not halved):
        return _by_mask(query, key, value, ends=document_ends, window=window, scale=scale), None
    ends = _row_ends(query) if document_ends is None else document_ends
    if document_kernel == EACH:
        query, key, value = pad_heads(query, *ungroup(query, key, value))
        out = packed_attention(query, key, value, ends, window, scale)[0]
    else:
        from tp2d_mesh.model.attention.varlen_kernel import by_length  # it loads torch's compiler, which takes a second

        longest = seq if longest_document is None else longest_document.shape[0]
        out = by_length(query, key, value, ends=ends, longest=longest, window=window, scale=scale)
    return out[..., :width].contiguous(), None


def _refuse_others(given: dict[str, Any], *, causal: bool) -> None:
    for name in ("attention_mask", "dropout", "softcap", "s_aux", "position_bias", "head_mask"):
        if given.get(name) is not None:
            raise ValueError(f"our attention would leave {name} out: use attn_implementation='sdpa' or 'eager'.")
    if not causal:
        raise ValueError("our attention is causal, and the model asks for one that looks ahead: use 'sdpa'.")


def _row_ends(query: torch.Tensor) -> torch.Tensor:
    batch, _, seq, _ = query.shape
    return torch.arange(0, (batch + 1) * seq, seq, dtype=torch.int32, device=query.device)


def _by_mask(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    ends: torch.Tensor | None,
    window: int,
    scale: float,
) -> torch.Tensor:
    """SDPA with a mask that is made from the ends on the device; nobody waits for it."""
    batch, _, seq, _ = query.shape
    sees = torch.ones(seq, seq, dtype=torch.bool, device=query.device).tril()
    if window:
        sees = sees & ~band(seq, window=window, device=query.device)
    if ends is not None:
        places = torch.arange(batch * seq, dtype=ends.dtype, device=ends.device)
        number = torch.searchsorted(ends, places, right=True).view(batch, 1, seq)
        sees = sees & (number[..., None] == number[:, :, None])
    key, value = ungroup(query, key, value)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=sees, scale=scale).transpose(1, 2).contiguous()
