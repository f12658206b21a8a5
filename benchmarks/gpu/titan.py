"""A loop as torchtitan's, from its published design (arXiv:2410.06511 and its documentation); no code is copied.

A Llama of its own. Per layer: checkpointing, selective by operation or whole, then `torch.compile`, then FSDP2 with
bf16 weights and fp32 reduction; units [embedding], layers, [norm, head], the last kept whole after forward. Compiled
cross-entropy, foreach clipping, fused AdamW, cuDNN's attention before flash attention. With `mixed="autocast"` there
is no FSDP2, as torchtitan itself does on one device.
"""

import contextlib
from collections import Counter
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts
from tp2d_mesh import IGNORED

from gpu.decoder import Decoder, documents_of
from gpu.loops import Setting, adamw, clipped, on_device, recomputed, shard, token_loss
from gpu.rows import Batch
from gpu.weights import drawn_model

_KEPT = {
    "aten::mm",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "torch_attn::_varlen_attn",
    "flex_attention",
}


class Titan:
    """The loop; see the module."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.attention = setting, setting.contender.attention
        self.model = Decoder(drawn_model(setting.config, device=setting.device))
        self.model.train()
        for layer in self.model.model.layers:
            layer.forward = _checkpointed(layer.forward, setting.contender.recompute)
            layer.forward = torch.compile(layer.forward, backend=setting.backend, fullgraph=True)
        self.loss = torch.compile(token_loss, backend=setting.backend)
        if setting.contender.mixed == "fsdp2":
            self._shard()
        self.parameters = list(self.model.parameters())
        self.optimizer = adamw(self.parameters)

    def _shard(self) -> None:
        body, head, setting = self.model.model, self.model.lm_head, self.setting
        tied = setting.config.tie_word_embeddings
        if not tied:
            shard(body.embed_tokens, setting=setting)
        for layer in body.layers:
            shard(layer, setting=setting)
        shard([body.embed_tokens, body.norm, head] if tied else [body.norm, head], setting=setting, reshard=False)
        shard(self.model, setting=setting)

    def step(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        labels = F.pad(batch["labels"], (0, 1), value=IGNORED)[:, 1:].contiguous()
        tokens = int((labels != IGNORED).sum())  # on the CPU still: as a loader would count them
        documents = documents_of(batch, attention=self.attention, device=self.setting.device)
        positions = batch.get("position_ids", torch.arange(labels.shape[1]).expand_as(labels))
        moved = on_device({"ids": batch["input_ids"], "labels": labels, "positions": positions}, self.setting.device)
        with self.setting.autocast(), _kernels(self.setting.device):
            logits = self.model(moved["ids"], moved["positions"], documents)
            loss = self.loss(logits, moved["labels"]) / tokens
        del logits
        loss.backward()
        norm = clipped(self.parameters)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach(), norm


def _kernels(device: torch.device) -> AbstractContextManager[Any]:
    """On a GPU: cuDNN's attention first, then flash attention, then the others."""
    if device.type != "cuda":
        return contextlib.nullcontext()
    order = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    return sdpa_kernel(order, set_priority=True)


def _checkpointed(forward: Any, mode: str) -> Any:
    if mode == "none":
        return forward
    if mode == "full":
        return recomputed(forward)
    return partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False, context_fn=_selective)


def _selective() -> Any:
    """Keeps attention and every second matrix product; products are counted anew in each forward."""
    products: Counter[bool] = Counter()

    def policy(context: Any, operation: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        name = operation.name().split(".")[0] if hasattr(operation, "overloadpacket") else str(operation)
        if name == "aten::mm":
            products[context.is_recompute] += 1
        kept = name in _KEPT and not (name == "aten::mm" and products[context.is_recompute] % 2 == 0)
        return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)
