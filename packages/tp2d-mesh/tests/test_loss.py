"""The vocabulary-parallel token loss against torch's cross-entropy on whole logits."""

import pytest
import torch
from tp2d_mesh import Mesh, chunk_range
from tp2d_mesh.model.loss.tokens import (
    count_global_tokens,
    count_tokens,
    global_loss_sum,
    shifted_labels,
    token_loss_sum,
)
from tp2d_mesh.testing import MeshError, run_on_mesh

VOCABULARY = 11


def logits_and_labels() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 30 * torch.randn(2, 5, VOCABULARY, dtype=torch.float64, generator=generator)
    labels = torch.randint(0, VOCABULARY, (2, 5), generator=generator)
    labels[1, 3:] = -100
    return logits, labels


def own_part(mesh: Mesh) -> tuple[torch.Tensor, torch.Tensor]:
    logits, labels = logits_and_labels()
    start, stop = chunk_range(VOCABULARY, mesh.layout.tp, mesh.tp_rank)
    part = logits[..., start:stop].clone().requires_grad_()
    loss = token_loss_sum(part, labels, rows=(start, stop), group=mesh.tp_group)
    (loss / 3).backward()
    return loss, part.grad


@pytest.mark.parametrize("tp", [1, 2, 4])
def test_value_and_gradient_equal_cross_entropy(tp: int) -> None:
    """Shows an unstable log-sum-exp (logits of +-90), ignored labels that count, and chunks of uneven size."""
    logits, labels = logits_and_labels()
    logits.requires_grad_()
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum")
    (expected / 3).backward()
    results = run_on_mesh(own_part, tp=tp)
    gradient = torch.cat([grad for _, grad in results], dim=-1)
    torch.testing.assert_close(gradient, logits.grad, rtol=1e-12, atol=1e-14)
    for loss, _ in results:
        torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=0)


def test_labels_move_left_and_the_last_position_predicts_nothing() -> None:
    assert shifted_labels(torch.tensor([[5, 6, 7]])).tolist() == [[6, 7, -100]]


def test_the_first_token_of_a_row_is_not_counted() -> None:
    assert int(count_tokens(torch.tensor([[5, 6, -100], [-100, 6, 7]]))) == 3


def over_the_mesh(mesh: Mesh) -> tuple[int, int, float, int]:
    """Of two micro-batches: tokens and positions of both, and the loss (the dp rank + 1) and tokens of the first."""
    first, second = torch.tensor([[5, 6, 7]]), torch.tensor([[-100, -100, 7]])
    tokens, positions = count_global_tokens([first, second], dp_group=mesh.dp_group)
    loss_sum, counted = global_loss_sum(torch.tensor(mesh.dp_rank + 1.0), first, dp_group=mesh.dp_group)
    assert tokens.dtype == positions.dtype == torch.int64
    return int(tokens), int(positions), float(loss_sum), int(counted)


def test_losses_tokens_and_positions_are_summed_over_dp_once() -> None:
    """Shows tokens or positions counted once per tp rank, and positions without those that have no label."""
    assert run_on_mesh(over_the_mesh, dp=2, tp=2) == [(6, 12, 3.0, 4)] * 4


def whole_logits_where_a_chunk_is_due(mesh: Mesh) -> None:
    logits, labels = logits_and_labels()
    rows = chunk_range(VOCABULARY, mesh.layout.tp, mesh.tp_rank)
    token_loss_sum(logits, labels, rows=rows, group=mesh.tp_group)


def test_logits_that_are_not_this_ranks_chunk_are_refused() -> None:
    message = "the model returned 11 logits per token where this tp rank holds rows (0 to 6|6 to 11) of"
    with pytest.raises(MeshError, match=message):
        run_on_mesh(whole_logits_where_a_chunk_is_due, tp=2)
