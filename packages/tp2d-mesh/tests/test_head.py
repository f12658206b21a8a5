"""Head and loss in chunks against torch's cross-entropy on whole logits."""

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from tp2d_mesh import Mesh, chunk_range
from tp2d_mesh.cost.peak import peak_bytes
from tp2d_mesh.model.loss.head import head_loss_sum, logit_bytes, tokens_per_chunk
from tp2d_mesh.model.loss.logits import UNCHANGED, LogitTransform
from tp2d_mesh.model.loss.tokens import token_loss_sum
from tp2d_mesh.testing import MeshError, run_on_mesh
from tp2d_mesh.testing.counted import counted, fake_mesh

VOCABULARY, HIDDEN = 11, 8
SCALED, CAPPED = LogitTransform(scale=0.3), LogitTransform(scale=2.0, soft_cap=3.0)


@dataclass(frozen=True, kw_only=True)
class Given:
    """Hidden states of two rows of 5 tokens, a head with a bias, and labels; logits of up to +-100."""

    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor
    labels: torch.Tensor

    @property
    def parameters(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.hidden, self.weight, self.bias

    def gradients(self) -> tuple[torch.Tensor, ...]:
        return tuple(x.grad for x in self.parameters)


def given(dtype: torch.dtype = torch.float64, *, size: float = 10.0) -> Given:
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        torch.randn(shape, dtype=torch.float64, generator=generator)
        for shape in ((2, 5, HIDDEN), (VOCABULARY, HIDDEN), (VOCABULARY,))
    )
    labels = torch.randint(0, VOCABULARY, (2, 5), generator=generator)
    labels[1, 3:] = -100
    tensors = (x.to(dtype).requires_grad_() for x in (size * hidden, weight, bias))
    return Given(**dict(zip(("hidden", "weight", "bias"), tensors, strict=True)), labels=labels)


def expected(data: Given, transform: LogitTransform = UNCHANGED) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The loss of whole logits and the gradients of a third of it, from torch's own operators, in float64."""
    wide = [x.detach().double().requires_grad_() for x in data.parameters]
    logits = (wide[0] @ wide[1].t() + wide[2]) * transform.scale
    if transform.soft_cap is not None:
        logits = transform.soft_cap * torch.tanh(logits / transform.soft_cap)
    targets = data.labels[:, 1:].flatten()
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets, reduction="sum")
    return loss.detach(), list(torch.autograd.grad(loss / 3, wide))


def own_part(mesh: Mesh, transform: LogitTransform, chunks: Sequence[int]) -> list[tuple[torch.Tensor, ...]]:
    """This rank's loss, the same without gradients, and gradients, with each number of tokens per chunk."""
    start, stop = chunk_range(VOCABULARY, mesh.layout.tp, mesh.tp_rank)
    results = []
    for tokens in chunks:
        data = given()
        weight, bias = (x.detach()[start:stop].clone().requires_grad_() for x in (data.weight, data.bias))
        place = {"rows": (start, stop), "group": mesh.tp_group, "transform": transform, "chunk_tokens": tokens}
        loss = head_loss_sum(data.hidden, weight, data.labels, bias=bias, **place)
        (loss / 3).backward()
        with torch.no_grad():
            again = head_loss_sum(data.hidden, weight, data.labels, bias=bias, **place)
        results.append((loss.detach(), again, data.hidden.grad, weight.grad, bias.grad))
    return results


@pytest.mark.parametrize("transform", [UNCHANGED, SCALED, CAPPED])
@pytest.mark.parametrize("tp", [1, 2, 4])
def test_value_and_gradients_equal_whole_logits(tp: int, transform: LogitTransform) -> None:
    """Shows a chunk that is left out or counted twice, ranks of uneven size that see another softmax, hidden states
    whose gradient is not summed over tp, and a scale or soft cap without its derivative."""
    data = given()
    loss, (for_hidden, for_weight, for_bias) = expected(data, transform)
    for results in zip(*run_on_mesh(own_part, transform, (1, 3, 4, 10, 99), tp=tp), strict=True):
        for value, evaluated, hidden, _, _ in results:
            torch.testing.assert_close(value, loss, rtol=1e-12, atol=0)
            assert torch.equal(value, evaluated) and torch.equal(value, results[0][0])
            torch.testing.assert_close(hidden, for_hidden, rtol=1e-12, atol=1e-13)
        weight, bias = (torch.cat([result[i] for result in results]) for i in (3, 4))
        torch.testing.assert_close(weight, for_weight, rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(bias, for_bias, rtol=1e-12, atol=1e-13)


def loss_of(data: Given, **options: object) -> torch.Tensor:
    place = {"rows": (0, VOCABULARY), "group": None, "bias": data.bias, **options}
    return head_loss_sum(data.hidden, data.weight, data.labels, **place)


@pytest.mark.parametrize("transform", [UNCHANGED, SCALED, CAPPED])
@pytest.mark.parametrize(("dtype", "step"), [(torch.float32, 2**-24), (torch.bfloat16, 2**-9), (torch.float16, 2**-12)])
def test_narrow_dtypes_stay_within_their_rounding(dtype: torch.dtype, step: float, transform: LogitTransform) -> None:
    """Shows a sum over chunks, a softmax or a loss in the narrow dtype.

    `step` is half a unit of rounding. A logit of up to 8 is rounded once, by 8 steps at most, and moves a softmax by
    as much times 2, the loss of each of 7 tokens too. The gradient of the logits and the result are rounded once more.
    """
    data = given(dtype, size=0.5)
    loss, wanted = expected(data, transform)
    found = loss_of(data, transform=transform, chunk_tokens=3)
    assert found.dtype == torch.float32
    (found / 3).backward()
    assert abs(found.detach().double() - loss) < 2 * 8 * 7 * step * transform.scale
    for gradient, exact in zip(data.gradients(), wanted, strict=True):
        assert gradient.dtype == dtype
        assert (gradient.double() - exact).abs().max() < 20 * step * exact.abs().max()


def test_the_gradient_of_a_label_that_is_almost_certain_survives_bfloat16() -> None:
    """Shows 1 taken off a softmax that was rounded before: 0.998 and 1.0 are the same there."""
    hidden = torch.ones(1, 2, 1, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.tensor([[7.0], [0.0]], dtype=torch.bfloat16)
    head_loss_sum(hidden, weight, torch.tensor([[0, 0]]), rows=(0, 2), group=None).backward()
    exact = -7 * torch.sigmoid(torch.tensor(-7.0))
    torch.testing.assert_close(hidden.grad[0, 0, 0].float(), exact, rtol=2**-7, atol=0)


def test_float16_gradients_are_scaled_before_they_are_rounded() -> None:
    """Shows gradients below 6e-8 that are rounded to 0 before the loss scale reaches them."""
    hidden = torch.ones(1, 2, 1, dtype=torch.float16, requires_grad=True)
    weight = torch.tensor([[3 * 2.0**-24], [0.0]], dtype=torch.float16)  # its half is none of float16's numbers
    loss = head_loss_sum(hidden, weight, torch.tensor([[0, 0]]), rows=(0, 2), group=None)
    (loss * 2.0**16 / 2.0**4).backward()
    exact = -0.5 * float(weight[0, 0]) * 2.0**12
    assert abs(float(hidden.grad[0, 0, 0]) / exact - 1) < 2**-9


def test_a_tied_weight_gets_both_its_gradients() -> None:
    data = given()
    table = data.weight.detach().clone().requires_grad_()
    ids = torch.tensor([[0, 3, 5, 7, 9], [1, 2, 4, 6, 8]])
    hidden = torch.nn.functional.embedding(ids, table) * 2
    head_loss_sum(hidden, table, data.labels, rows=(0, VOCABULARY), group=None, chunk_tokens=3).backward()
    whole = data.weight.detach().clone().requires_grad_()
    logits = torch.nn.functional.embedding(ids, whole) * 2 @ whole.t()
    torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), data.labels[:, 1:].flatten(), reduction="sum"
    ).backward()
    torch.testing.assert_close(table.grad, whole.grad, rtol=1e-12, atol=1e-13)


def test_without_any_label_loss_and_gradients_are_zero() -> None:
    data = given()
    data.labels.fill_(-100)
    loss = loss_of(data, chunk_tokens=3)
    loss.backward()
    assert float(loss.detach()) == 0 and all(float(g.abs().max()) == 0 for g in data.gradients())


def test_only_what_needs_a_gradient_gets_one() -> None:
    """Shows a frozen head (LoRA, for instance) that pays for its weight's gradient, or whose hidden states get none."""
    data = given()
    _, (wanted, _, _) = expected(data)
    frozen = Given(hidden=data.hidden, weight=data.weight.detach(), bias=data.bias.detach(), labels=data.labels)
    (loss_of(frozen, chunk_tokens=4) / 3).backward()
    torch.testing.assert_close(data.hidden.grad, wanted, rtol=1e-12, atol=1e-13)


def test_a_second_backward_is_refused() -> None:
    """Its gradients were scaled in place: a second one would scale them again."""
    loss = loss_of(given())
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_what_does_not_fit_is_refused() -> None:
    data = given()
    with pytest.raises(ValueError, match="has 11 rows here, where this tp rank holds rows 0 to 10 of the vocabulary"):
        loss_of(data, rows=(0, 10))
    with pytest.raises(ValueError, match=r"A bias in torch.float32 does not fit an output embedding in torch.float64"):
        loss_of(data, bias=data.bias.float())
    with pytest.raises(ValueError, match="chunk_tokens=0 must be at least 1"):
        loss_of(data, chunk_tokens=0)


def without_the_vocabulary(mesh: Mesh) -> None:
    data, rows = given(), chunk_range(VOCABULARY, mesh.layout.tp, mesh.tp_rank)
    head_loss_sum(data.hidden, data.weight[slice(*rows)], data.labels, rows=rows, group=mesh.tp_group)


def test_ranks_that_could_choose_different_chunks_are_refused() -> None:
    with pytest.raises(MeshError, match="vocabulary=None: 2 tp ranks with different numbers of rows"):
        run_on_mesh(without_the_vocabulary, tp=2)


@pytest.mark.parametrize("soft_cap", [0.0, -1.0, float("inf")])
def test_a_transform_that_is_none_is_refused(soft_cap: float) -> None:
    with pytest.raises(ValueError, match="of the logits is not a positive number"):
        LogitTransform(soft_cap=soft_cap)
    with pytest.raises(ValueError, match="scale=nan of the logits is not finite"):
        LogitTransform(scale=float("nan"))


def test_small_vocabularies_have_one_chunk_and_large_ones_even_chunks() -> None:
    assert tokens_per_chunk(2048, vocabulary=8192, dtype=torch.float32) == 2048
    assert tokens_per_chunk(8192, vocabulary=128_256, dtype=torch.bfloat16) == 1408  # six chunks, the last of 1,152
    assert tokens_per_chunk(8192, vocabulary=64_128, dtype=torch.bfloat16) == 2816
    assert tokens_per_chunk(7, vocabulary=10**9, dtype=torch.bfloat16) == 7  # fewer than the least chunk


MIB = 2**20
TOKENS, ROWS, WIDTH = 8192, 128_256, 4096


def peak_of_head(mesh: Mesh, *, dtype: torch.dtype, transform: LogitTransform = UNCHANGED) -> int:
    """Bytes beside the weight's gradient in float32, forward and backward, on the meta device."""
    start, stop = chunk_range(ROWS, mesh.layout.tp, mesh.tp_rank)
    hidden = torch.empty(1, TOKENS, WIDTH, dtype=dtype, device="meta", requires_grad=True)
    weight = torch.empty(stop - start, WIDTH, dtype=dtype, device="meta", requires_grad=True)
    labels = torch.zeros(1, TOKENS, dtype=torch.int64, device="meta")
    with peak_bytes() as peak:
        place = {"rows": (start, stop), "group": mesh.tp_group, "vocabulary": ROWS, "transform": transform}
        head_loss_sum(hidden, weight, labels, **place).backward()
    assert hidden.grad.dtype == weight.grad.dtype == dtype
    return peak.bytes - (stop - start) * WIDTH * 4


@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("transform", [UNCHANGED, CAPPED])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_peak_memory_is_the_formulas(tp: int, dtype: torch.dtype, transform: LogitTransform) -> None:
    """Shows logits of a chunk that live on into the next, one more copy of them, and a temporary weight gradient.

    The rest is a few numbers per token: below 2 MiB for 8,192. The bound of issue 11 is 1.6 GiB.
    """
    with fake_mesh(tp=tp) as mesh:
        found = peak_of_head(mesh, dtype=dtype, transform=transform)
    rows = ROWS // tp
    chunk = tokens_per_chunk(TOKENS, vocabulary=rows, dtype=dtype, transform=transform)
    forward = chunk * rows * logit_bytes(dtype, transform) + 4 * TOKENS * WIDTH
    backward = 2 * rows * WIDTH + 6 * TOKENS * WIDTH if dtype == torch.bfloat16 else 0
    assert abs(found - max(forward, backward)) < 2 * MIB
    assert found < 1.6 * 1024 * MIB


def test_whole_logits_would_take_ten_times_as_much() -> None:
    """Shows a count that misses what it should see: the logits in bfloat16 and float32, and their gradients."""
    with fake_mesh() as mesh, peak_bytes() as peak:
        logits = torch.empty(1, TOKENS, ROWS, dtype=torch.bfloat16, device="meta", requires_grad=True) * 1
        labels = torch.zeros(1, TOKENS, dtype=torch.int64, device="meta")
        token_loss_sum(logits, labels, rows=(0, ROWS), group=mesh.tp_group).backward()
    assert peak.bytes > 10 * 1024 * MIB


@pytest.mark.parametrize(("tp", "gathers", "reductions"), [(1, 0, 0), (2, 3, 1)])
def test_collectives_are_one_per_chunk_and_one_for_the_hidden_states(tp: int, gathers: int, reductions: int) -> None:
    """Shows an all-reduce of the hidden states' gradient for each chunk; 10 tokens in chunks of 4."""
    with fake_mesh(tp=tp) as mesh, counted(mesh) as seen:
        data, rows = given(), chunk_range(VOCABULARY, tp, 0)
        place = {"rows": rows, "group": mesh.tp_group, "chunk_tokens": 4}
        head_loss_sum(data.hidden, data.weight[slice(*rows)], data.labels, **place).backward()
    assert (seen.calls("all_gather"), seen.calls("all_reduce")) == (gathers, reductions)
    assert seen.calls() == gathers + reductions
    assert seen.size("all_reduce") == reductions * 10 * HIDDEN * 8
    assert seen.size("all_gather") == (gathers > 0) * tp * 3 * 10 * 8
