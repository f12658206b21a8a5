"""Packed rows: several documents share a row, and each computes exactly what it computes alone.

A batch of packed rows carries `position_ids` that restart at 0 with each document. transformers' own mask code finds
the boundaries in them (`masking_utils.find_packed_sequence_indices`), so no mask is passed. Flash attention takes no
mask: the rows are laid end to end and it is given the documents' ends.

Some models ignore positions in their mask. They train on with a plausible loss. So packed rows are only taken for
families that `python benchmarks/parity_packed.py --sweep` has shown exact; every other family is refused by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from tp2d_mesh.model.families import PACKED_FAMILIES, VARLEN_FAMILIES

MASK_ATTENTIONS = frozenset({"eager", "sdpa"})
"""transformers' attentions that take a mask and were swept."""

_WAY_OUT = "use packing=pad, or turn respect_boundaries off"


@dataclass(frozen=True, kw_only=True)
class ModelBatch:
    """One micro-batch as a model takes it, on its device.

    Args:
        labels: `(batch, seq)` int64, not shifted.
        inputs: keyword arguments of the model's forward.
    """

    labels: torch.Tensor
    inputs: Mapping[str, Any]

    def logits(self, model: Any) -> torch.Tensor:
        """The model's logits, `(batch, seq, vocabulary or this tp rank's chunk)`, however the rows went in."""
        logits: torch.Tensor = model(**self.inputs).logits
        return logits.reshape(*self.labels.shape, logits.shape[-1])


def model_batch(batch: Mapping[str, torch.Tensor], *, config: Any, device: torch.device) -> ModelBatch:
    """Make a batch of the data package ready for a model; a packed one only for a family proven exact.

    Args:
        batch: `(batch, seq)` int64 `input_ids` and `labels`, and `position_ids` where the rows are packed.
        config: the model's transformers configuration, with the attention in use.
        device: where the model is.

    Raises:
        ValueError: see `check_packed`.
    """
    attention = config._attn_implementation or "eager"
    if "position_ids" in batch:
        check_packed(config, attention=attention, seq_length=batch["input_ids"].shape[1])
    inputs = forward_inputs(batch, attention=attention)
    moved = {k: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    return ModelBatch(labels=batch["labels"].to(device, non_blocking=True), inputs=moved)


def forward_inputs(batch: Mapping[str, torch.Tensor], *, attention: str) -> dict[str, Any]:
    """The keyword arguments of a transformers causal language model for a batch, packed or not.

    Without `position_ids` there is no mask either: padding is on the right and attention causal, so no real token
    sees it. With them and a flash attention the rows become one row of `batch * seq` tokens; the ends of the
    documents are worked out here, once, so that no layer has to wait for the device to find them.

    Args:
        batch: `(batch, seq)` int64 `input_ids`, and `position_ids` where the rows are packed.
        attention: transformers' name of the attention in use.
    """
    inputs: dict[str, Any] = {"input_ids": batch["input_ids"], "use_cache": False}  # a cache would hide the boundaries
    positions = batch.get("position_ids")
    if positions is None:
        return inputs
    if "flash" not in attention:
        return {**inputs, "position_ids": positions}
    ends, longest = _document_ends(positions)
    return {
        "input_ids": inputs["input_ids"].reshape(1, -1),
        "position_ids": positions.reshape(1, -1),
        "use_cache": False,
        "cu_seq_lens_q": ends,
        "cu_seq_lens_k": ends,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def _document_ends(positions: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Where each document ends in the rows laid end to end, from 0 on, `(documents + 1,)` int32; the longest."""
    starts = (positions.reshape(-1) == 0).nonzero()[:, 0].to(torch.int32)
    return F.pad(starts, (0, 1), value=positions.numel()), int(positions.max()) + 1


def check_packed(config: Any, *, attention: str, seq_length: int | None = None) -> None:
    """Refuse packed rows where documents were not shown to be kept apart. Looks names up and computes nothing.

    Args:
        config: the model's transformers configuration.
        attention: transformers' name of the attention in use.
        seq_length: tokens of a row, or None where it is not known yet.

    Raises:
        ValueError: names the family, its attention or its rotary scaling, and the way out.
    """
    family, flash = config.model_type, "flash" in attention
    if not flash and attention not in MASK_ATTENTIONS:
        raise ValueError(
            f"packed rows have not been checked with attn_implementation={attention!r}: use 'sdpa', or {_WAY_OUT}."
        )
    if family not in (VARLEN_FAMILIES if flash else PACKED_FAMILIES):
        raise ValueError(
            f"model type {family!r} has not been shown to keep the documents of a packed row apart under "
            f"attn_implementation={attention!r}: {_WAY_OUT}."
        )
    if seq_length is not None:
        _check_rotary(config, seq_length=seq_length)


def _check_rotary(config: Any, *, seq_length: int) -> None:
    """Refuse frequencies that are chosen by the longest document of a batch: they would reach its neighbours."""
    text = config.get_text_config()
    whole = getattr(text, "rope_parameters", None) or {}
    for rope in (whole, *(value for value in whole.values() if isinstance(value, Mapping))):
        kind = rope.get("rope_type", "default")
        limits = (rope.get("original_max_position_embeddings"), getattr(text, "max_position_embeddings", None))
        limit = min((n for n in limits if n), default=0)
        if (kind == "longrope" or "dynamic" in kind) and seq_length > limit:
            raise ValueError(
                f"rope_type={kind!r} takes its frequencies from the longest document of a batch once one is longer "
                f"than {limit}, and seq_length={seq_length} allows that: use seq_length={limit}, or {_WAY_OUT}."
            )
