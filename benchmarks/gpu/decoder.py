"""A Llama decoder in plain torch for the loop as torchtitan's: fused norms, attention by document without a dense mask.

Written from torchtitan's published design. The parameters have transformers' names, so the same weights fit both.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from torch.nn.attention.varlen import varlen_attn

from gpu.rows import Batch, document_lengths

_ROUND_UP = 1024  # the longest document goes to the kernel in these steps, so that few graphs are compiled


@dataclass(frozen=True, kw_only=True)
class Documents:
    """Where the documents of packed rows are, in the form that one attention takes.

    Args:
        ends: `(documents + 1,)` int32 from 0 on, padded with the last end; for `varlen`.
        longest: at least the longest document's tokens; for `varlen`.
        mask: `(rows, 1, seq, seq)` bool; for `mask`.
        blocks: for `flex`.
    """

    ends: torch.Tensor | None = None
    longest: int = 0
    mask: torch.Tensor | None = None
    blocks: BlockMask | None = None


def documents_of(batch: Batch, *, attention: str, device: torch.device) -> Documents:
    """The documents of a batch that is still on the CPU.

    Args:
        batch: see `gpu.rows.batches`.
        attention: `sdpa` (each row one document), `varlen`, `flex` or `mask`.
        device: where the model is.
    """
    if attention == "sdpa":
        return Documents()
    lengths = document_lengths(batch)
    if attention == "varlen":
        # Empty documents up to a multiple of 64, so that few shapes occur.
        padded = lengths + [0] * (-(len(lengths) + 1) % 64)
        ends = F.pad(torch.tensor(padded).cumsum(0), (1, 0)).to(torch.int32)
        longest = -(-max(lengths) // _ROUND_UP) * _ROUND_UP
        return Documents(ends=_moved(ends, device), longest=longest)
    numbers = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    numbers = _moved(numbers.view(batch["input_ids"].shape), device)
    if attention == "flex":
        return Documents(blocks=_blocks(numbers))
    same = numbers[:, None, :, None] == numbers[:, None, None, :]
    return Documents(mask=same.tril())


def _moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)


def _blocks(numbers: torch.Tensor) -> BlockMask:
    def same_document(row: Any, head: Any, query: Any, key: Any) -> Any:
        return (query >= key) & (numbers[row, query] == numbers[row, key])

    rows, seq = numbers.shape
    return create_block_mask(same_document, rows, None, seq, seq, device=numbers.device.type, _compile=True)


class Attention(nn.Module):
    """Grouped attention with rotary positions; the documents' form says which kernel computes it."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        hidden, heads, groups = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
        self.size = config.head_dim
        self.repeats = heads // groups
        self.q_proj = nn.Linear(hidden, heads * self.size, bias=False)
        self.k_proj = nn.Linear(hidden, groups * self.size, bias=False)
        self.v_proj = nn.Linear(hidden, groups * self.size, bias=False)
        self.o_proj = nn.Linear(heads * self.size, hidden, bias=False)

    def forward(self, x: torch.Tensor, rotary: torch.Tensor, documents: Documents) -> torch.Tensor:
        """`x` is `(rows, seq, hidden)`, `rotary` `(2, rows, seq, 1, head size)`: cosines and sines."""
        q, k, v = (p(x).unflatten(-1, (-1, self.size)) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = _rotated(q, rotary), _rotated(k, rotary)
        if documents.ends is not None:
            out = self._by_ends(q, k, v, ends=documents.ends, longest=documents.longest)
            return self.o_proj(out.view(*x.shape[:2], -1))
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        if documents.blocks is not None:
            out = flex_attention(q, k, v, block_mask=documents.blocks, enable_gqa=True)
        else:
            causal, mask = documents.mask is None, documents.mask
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=True)
        return self.o_proj(out.transpose(1, 2).flatten(2))

    def _by_ends(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, ends: torch.Tensor, longest: int
    ) -> torch.Tensor:
        """torch 2.11's kernel has no grouped heads, so they are repeated."""
        q, k, v = q.flatten(0, 1), *(t.repeat_interleave(self.repeats, dim=2).flatten(0, 1) for t in (k, v))
        out = varlen_attn(q, k, v, ends, ends, longest, longest, window_size=(-1, 0))
        assert isinstance(out, torch.Tensor)  # no auxiliary output was asked for
        return out


def _rotated(x: torch.Tensor, rotary: torch.Tensor) -> torch.Tensor:
    wide = x.float()
    first, second = wide.chunk(2, dim=-1)
    return (wide * rotary[0] + torch.cat((-second, first), dim=-1) * rotary[1]).to(x.dtype)


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Attention and feed-forward, each behind a norm and beside a residual."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x: torch.Tensor, rotary: torch.Tensor, documents: Documents) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x), rotary, documents)
        return x + self.mlp(self.post_attention_layernorm(x))


class Body(nn.Module):
    """Everything but the head; only a holder of names."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)


class Decoder(nn.Module):
    """A Llama with the weights of a transformers model, which it takes over; its rotary frequencies too."""

    frequencies: torch.Tensor

    def __init__(self, source: Any) -> None:
        super().__init__()
        config = source.config
        with torch.device("meta"):
            self.model = Body(config)
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.load_state_dict(source.state_dict(), assign=True)
        for parameter in self.parameters():
            parameter.requires_grad_()
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.register_buffer("frequencies", source.model.rotary_emb.inv_freq.detach().float(), persistent=False)

    def forward(self, ids: torch.Tensor, positions: torch.Tensor, documents: Documents) -> torch.Tensor:
        """`(rows, seq)` tokens and positions to `(rows, seq, vocabulary)` logits."""
        angles = (positions[..., None].float() * self.frequencies).repeat(1, 1, 2)[:, :, None]
        x = self.model.embed_tokens(ids)
        rotary = torch.stack((angles.cos(), angles.sin())).to(x.dtype)
        for layer in self.model.layers:
            x = layer(x, rotary, documents)
        return self.lm_head(self.model.norm(x))
