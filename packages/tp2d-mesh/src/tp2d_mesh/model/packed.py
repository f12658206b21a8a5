"""Packed rows: several documents share a row, and each computes exactly what it computes alone.

A batch of packed rows carries `position_ids` that restart at 0 with each document. Our own attention
(`tp2d_mesh.model.attention`) and flash attention are given the documents' ends, which the loader hands out with the
batch. Under transformers' other attentions its mask code finds the boundaries in the positions
(`masking_utils.find_packed_sequence_indices`), so no mask is passed.

Some models ignore positions in their mask. They train on with a plausible loss. So packed rows are only taken for
families that `python benchmarks/parity_packed.py --sweep` has shown exact; every other family is refused by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tp2d_mesh.model.attention.documents import find_documents
from tp2d_mesh.model.attention.function import ATTENTION, VARLEN, kernel_for
from tp2d_mesh.model.families import DOCUMENT_FAMILIES, PACKED_FAMILIES, VARLEN_FAMILIES

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
        batch: `(batch, seq)` int64 `input_ids` and `labels`, and `position_ids` where the rows are packed. Where it
            has an attribute `documents` (`attention.documents.DocumentEnds`), nobody looks for their ends.
        config: the model's transformers configuration, with the attention in use.
        device: where the model is.

    Raises:
        ValueError: see `check_packed`; or the batch's `documents` are of another size.
    """
    attention = config._attn_implementation or "eager"
    if "position_ids" in batch:
        check_packed(config, attention=attention, seq_length=batch["input_ids"].shape[1])
    inputs = forward_inputs(batch, attention=attention, device=device)
    moved = {k: v.to(device, non_blocking=True) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    for name in _OF_ANY_LENGTH & moved.keys():
        # Batches differ in these lengths. Without the mark, compiled layers would be compiled again for the second.
        if moved[name] is not None:
            torch._dynamo.maybe_mark_dynamic(moved[name], 0)
    return ModelBatch(labels=batch["labels"].to(device, non_blocking=True), inputs=moved)


def forward_inputs(
    batch: Mapping[str, torch.Tensor], *, attention: str, device: torch.device | None = None
) -> dict[str, Any]:
    """The keyword arguments of a transformers causal language model for a batch, packed or not.

    Without `position_ids` there is no mask either: padding is on the right and attention causal, so no real token
    sees it. Our attention always has to be told that; with them it and flash attention are given the documents' ends,
    worked out once a batch, so that no layer has to wait for the device to find them. For flash attention the rows
    become one row of `batch * seq` tokens.

    Args:
        batch: as `model_batch` takes it; `labels` are not needed.
        attention: transformers' name of the attention in use.
        device: where the model is; None: where the batch is.
    """
    ids, positions = batch["input_ids"], batch.get("position_ids")
    inputs: dict[str, Any] = {"input_ids": ids, "use_cache": False}  # a cache would hide the boundaries
    if attention == ATTENTION:
        inputs |= _document_inputs(batch, device=ids.device if device is None else device)
    if positions is None:
        return inputs
    inputs["position_ids"] = positions
    return _end_to_end(batch, inputs) if "flash" in attention else inputs


_OF_ANY_LENGTH = frozenset({"document_ends", "longest_document"})


def _document_inputs(batch: Mapping[str, torch.Tensor], *, device: torch.device) -> dict[str, Any]:
    """What `document_attention` is given beside a model's usual arguments."""
    kernel = kernel_for(device)
    if "position_ids" not in batch:
        return {"document_kernel": kernel, "document_ends": None}
    documents = find_documents(batch)
    inputs = {"document_kernel": kernel, "document_ends": documents.ends}
    if kernel == VARLEN:
        # At least 2: for a length of 1 compiled code would be made anew.
        inputs["longest_document"] = documents.ends.new_empty(max(documents.longest, 2), dtype=torch.int8)
    return inputs


def _end_to_end(batch: Mapping[str, torch.Tensor], inputs: Mapping[str, Any]) -> dict[str, Any]:
    documents = find_documents(batch)
    return {
        **inputs,
        "input_ids": inputs["input_ids"].reshape(1, -1),
        "position_ids": inputs["position_ids"].reshape(1, -1),
        "cu_seq_lens_q": documents.ends,
        "cu_seq_lens_k": documents.ends,
        "max_length_q": documents.longest,
        "max_length_k": documents.longest,
    }


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
    if not flash and attention not in (*MASK_ATTENTIONS, ATTENTION):
        raise ValueError(
            f"packed rows have not been checked with attn_implementation={attention!r}: use 'sdpa', or {_WAY_OUT}."
        )
    exact = DOCUMENT_FAMILIES if attention == ATTENTION else VARLEN_FAMILIES if flash else PACKED_FAMILIES
    if family not in exact:
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
