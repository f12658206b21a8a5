"""What the head and the loss of a micro-batch take, traced on tensors without values."""

from dataclasses import dataclass
from typing import Any

import torch
from tp2d_mesh import Layout, chunk_range
from tp2d_mesh.cost.activations import fake_tensors
from tp2d_mesh.cost.peak import peak_bytes
from tp2d_mesh.model.loss.head import head_loss_sum
from tp2d_mesh.model.loss.heads import head_of
from tp2d_mesh.model.loss.tokens import token_loss_sum

from tp2d_fsdp2.planned.one_rank import lone_group


@dataclass(frozen=True, kw_only=True)
class HeadMemory:
    """Bytes beside the hidden states and the weights, which exist before.

    Args:
        forward: the most in forward.
        backward: the most in backward, the weight's gradient included.
        chunked: whether the loss is computed with the head, in chunks.
    """

    forward: int
    backward: int
    chunked: bool


def trace_head(
    model: Any, *, layout: Layout, dtype: torch.dtype, device: torch.device, batch: int, seq: int
) -> HeadMemory:
    """The memory of the head of tp rank 0; on the CPU some products need temporaries, on GPUs none.

    Args:
        model: the unsharded model.
        layout: the dp x tp layout.
        dtype: of compute.
        device: its type alone is read.
        batch: rows of a micro-batch.
        seq: tokens of a row.
    """
    vocabulary, width = model.get_output_embeddings().weight.shape
    rows = chunk_range(vocabulary, layout.tp, 0)
    head, group = head_of(model), lone_group(layout.tp)
    place: dict[str, Any] = {"device": "cpu" if device.type == "cpu" else "meta"}
    with fake_tensors():
        hidden = torch.empty(batch, seq, width, dtype=dtype, requires_grad=True, **place)
        weight = torch.empty(rows[1] - rows[0], width, dtype=dtype, requires_grad=True, **place)
        labels = torch.zeros(batch, seq, dtype=torch.int64, **place)
        with peak_bytes() as peak:
            if head is None:
                loss = token_loss_sum(hidden @ weight.t(), labels, rows=rows, group=group)
            else:
                loss = head_loss_sum(
                    hidden, weight, labels, rows=rows, group=group, vocabulary=vocabulary, transform=head.transform
                )
            forward = peak.bytes
            peak.restart()
            loss.backward()
    return HeadMemory(forward=forward, backward=peak.bytes, chunked=head is not None)
