"""What a run says of itself; the rest is tested with the worker."""

from tp2d_data import Statistics
from tp2d_train.training.summary import describe_data


def test_what_was_left_out_is_said() -> None:
    counts = Statistics(
        documents=3760, dropped={"empty": 1299}, rows=592, tokens=300_000, cut_tokens=12, padded_tokens=3104
    )
    assert describe_data(counts, seq_length=512) == (
        "592 rows of 512 tokens, 99.0% filled, of 3,760 documents, 1,299 left out (empty), 12 tokens cut off"
    )
