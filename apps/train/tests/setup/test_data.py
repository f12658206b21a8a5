"""What is refused about a tokenizer; that data can be opened is tested with the worker."""

import pytest
from tp2d_train.setup.data import check_vocabulary
from transformers import LlamaConfig


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused() -> None:
    """Without the check an embedding look-up fails in the middle of a step, on a GPU with an unreadable error."""
    with pytest.raises(
        ValueError, match=r"the tokenizer has 101 tokens and the model's vocab_size is 100: set tokenizer"
    ):
        check_vocabulary(101, LlamaConfig(vocab_size=100))
    check_vocabulary(100, LlamaConfig(vocab_size=100))
