"""A causal language model whose forward gives the loss: base model, then head and loss a chunk of tokens at a time."""

from typing import Any

import torch
import torch.distributed as dist

from tp2d_mesh.model.loss.head import head_loss_sum
from tp2d_mesh.model.loss.heads import Head


def give_loss(model: Any, head: Head, *, rows: tuple[int, int], group: dist.ProcessGroup) -> None:
    """Let a model's forward, if it is given `labels`, return the summed loss; then it never computes whole logits.

    The output embedding computes it, in a forward of its own, so that an engine that gathers a module's weights before
    its forward need not know.

    Args:
        model: the causal language model, changed in place.
        head: where its base model and its output embedding are.
        rows: the half-open range of the vocabulary, in rows of the output embedding, that this tp rank holds.
        group: the tp group the vocabulary is split over.
    """
    base, output = model.get_submodule(head.base), model.get_submodule(head.output)
    vocabulary = output.weight.shape[0]

    give_logits, give_output = output.forward, model.forward

    def loss_of_hidden(hidden: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        if labels is None:
            logits: torch.Tensor = give_logits(hidden)
            return logits
        return head_loss_sum(
            hidden.reshape(*labels.shape, hidden.shape[-1]),  # flash attention has all rows in one
            output.weight,
            labels,
            rows=rows,
            group=group,
            vocabulary=vocabulary,
            bias=output.bias,
            transform=head.transform,
        )

    def forward(*args: Any, labels: torch.Tensor | None = None, **inputs: Any) -> Any:
        if labels is None:
            return give_output(*args, **inputs)
        loss: torch.Tensor = output(base(*args, **inputs).last_hidden_state, labels)
        return loss

    output.forward = loss_of_hidden
    model.forward = forward
