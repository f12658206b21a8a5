import numpy as np
from tp2d_data import causal_labels


def test_mask_decides_and_not_the_token():
    """With pad = eos = 9 a comparison of ids would hide the real 9 in the middle."""
    ids = np.array([[5, 9, 6, 9, 9]])
    mask = np.array([[1, 1, 1, 1, 0]])
    assert causal_labels(ids, mask).tolist() == [[5, 9, 6, 9, -100]]
    assert causal_labels(ids, mask).dtype == np.int64
