"""What a run says of itself; the rest is tested with the worker."""

import dataclasses

import pytest
from tp2d_data import Statistics
from tp2d_train.config import TrainConfig
from tp2d_train.training.summary import describe_data

COUNTS = Statistics(
    documents=3760, dropped={"empty": 1299}, rows=592, tokens=300_000, cut_tokens=12, padded_tokens=3104
)
SAID = "592 rows of 512 tokens, 99.0% filled, of 3,760 documents, 1,299 left out (empty), 12 tokens cut off"


def test_what_was_left_out_is_said() -> None:
    assert describe_data(COUNTS, TrainConfig(seq_length=512, dataset_percentage=100)) == SAID


@pytest.mark.parametrize(("available", "count"), [(7600, "7,600 "), (None, "")])
def test_what_a_percentage_leaves_out_is_said(available: int | None, count: str) -> None:
    statistics = dataclasses.replace(COUNTS, available=available)
    said = describe_data(statistics, TrainConfig(seq_length=512, dataset_percentage=12.5))
    assert said == f"{SAID}; dataset_percentage 12.5 leaves out 87.5% of the {count}documents"


def test_of_a_stream_only_the_percentage_is_known() -> None:
    config = TrainConfig(dataset_percentage=99.9)
    assert describe_data(None, config) == "dataset_percentage 99.9 leaves out 0.1% of the documents"
    assert describe_data(None, TrainConfig(dataset_percentage=100)) == ""
