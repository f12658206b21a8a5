"""Our attention in a compiled layer: one graph for every batch, with the numbers of the layer that is not compiled."""

from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch.nn.attention import varlen
from tp2d_mesh import model_batch
from tp2d_mesh.model.attention import function as attention
from tp2d_mesh.model.attention.function import ATTENTION, register_attention
from tp2d_mesh.model.attention.packed_kernel import packed_attention
from tp2d_mesh.testing.packed_parity import packed_batch
from tp2d_mesh.testing.parity import TINY, tiny_model

CPU = torch.device("cpu")
needs_transformers = pytest.mark.skipif(
    find_spec("transformers") is None, reason="transformers is not installed: tp2d-mesh itself does without"
)


@torch.library.custom_op("tp2d_tests::bounded", mutates_args=())
def bounded(ends: torch.Tensor, longest: int) -> torch.Tensor:
    """A copy of the ends, once they are known to keep within the longest."""
    if int(ends.diff().max()) > longest:
        raise RuntimeError(f"a document of {int(ends.diff().max())} tokens where the longest has {longest}")
    return ends.clone()


@bounded.register_fake
def _(ends: torch.Tensor, longest: int) -> torch.Tensor:
    return torch.empty_like(ends)


def varlen_as_an_operation(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    ends: torch.Tensor,
    _: torch.Tensor,
    longest: int,
    __: int,
    *,
    scale: float,
    window_size: tuple[int, int],
    enable_gqa: bool = False,
) -> torch.Tensor:
    """torch's `varlen_attn` for a compiler: opaque, the ends as data and the longest as an integer."""
    rows = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1).transpose(0, 1)[None] for x in (q, k, v))
    return packed_attention(*rows, bounded(ends, longest), window_size[0] + 1, scale)[0][0]


@needs_transformers
@pytest.mark.parametrize("dynamic", [None, False])
@pytest.mark.parametrize("kernel", ["each", "varlen"])
def test_a_compiled_layer_is_one_graph_whatever_the_documents(
    kernel: str, dynamic: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shows a graph break, a graph per number of documents or per longest document, or one that keeps an old end."""
    monkeypatch.setattr("tp2d_mesh.model.packed.kernel_for", lambda device: kernel)
    graphs = []

    def counting(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    register_attention()
    rows = ([[3, 21], [24]], [[24], [24]], [[1] * 24, [1] * 24], [[4] * 6, [20, 4]], [[12, 5], [2, 2]])
    batches = [packed_batch(lengths, vocab_size=TINY["vocab_size"], seed=i) for i, lengths in enumerate(rows)]
    if kernel == "varlen":
        monkeypatch.setattr(varlen, "varlen_attn", varlen_as_an_operation)
        monkeypatch.setattr(attention, "HALVES", {torch.float64})
    eager, compiled = (tiny_model("qwen3", dtype=torch.float64) for _ in range(2))
    for layer in compiled.model.layers:
        layer.compile(backend=counting, fullgraph=True, dynamic=dynamic)
    for batch in batches:
        found = []
        for model in (eager, compiled):
            model.config._attn_implementation = ATTENTION
            logits = model_batch(batch, config=model.config, device=CPU).logits(model)
            logits.square().sum().backward()
            found.append(logits)
        torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-13)
    assert len(graphs) == 1
    for expected, parameter in zip(eager.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-12, atol=1e-12)
    torch._dynamo.reset()
