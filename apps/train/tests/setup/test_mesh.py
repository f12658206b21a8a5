"""What a rank refuses before it builds a model; the building itself is tested with the worker."""

import pytest
from tp2d_mesh import Mesh
from tp2d_mesh.testing import run_on_mesh
from tp2d_train.parts import check_vocabulary, gather_places
from transformers import LlamaConfig


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused() -> None:
    """Without the check an embedding look-up fails in the middle of a step, on a GPU with an unreadable error."""
    with pytest.raises(
        ValueError, match=r"the tokenizer has 101 tokens and the model's vocab_size is 100: set tokenizer"
    ):
        check_vocabulary(101, LlamaConfig(vocab_size=100))
    check_vocabulary(100, LlamaConfig(vocab_size=100))


def places(mesh: Mesh, nodes: list[str], *, allow: bool) -> str:
    try:
        return gather_places(mesh, node=nodes[mesh.rank], allow_cross_node_tp=allow)
    except ValueError as error:
        return str(error)


def test_a_tp_group_on_two_nodes_is_refused_unless_allowed() -> None:
    refused = run_on_mesh(places, ["a", "b"], allow=False, tp=2)
    assert refused[0] == refused[1] and "1 of 1 tp groups on more than one node" in refused[0]
    allowed = run_on_mesh(places, ["a", "b"], allow=True, tp=2)
    assert allowed == ["dp 0: rank 0 on a, rank 1 on b"] * 2
