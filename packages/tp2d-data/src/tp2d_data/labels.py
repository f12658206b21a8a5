"""What a row is trained to predict."""

import numpy as np
from numpy.typing import NDArray

IGNORED = -100
"""The label that no loss counts, as in torch.nn.functional.cross_entropy."""


def causal_labels(input_ids: NDArray[np.int64], attention_mask: NDArray[np.int64]) -> NDArray[np.int64]:
    """Labels of a causal language model, not shifted: the tokens themselves, -100 where the mask is 0.

    The mask decides and never the token: with pad = eos, comparing ids would hide every real end of text.

    Args:
        input_ids: (batch, seq).
        attention_mask: (batch, seq), 1 for a token, 0 for padding.
    """
    return np.where(attention_mask == 1, input_ids, IGNORED)
