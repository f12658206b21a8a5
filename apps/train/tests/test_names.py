"""The answer to a name that is not known."""

import pytest
from tp2d_train.config import option_fields
from tp2d_train.names import OTHER_NAMES, meant

FIELDS = [field.name for field in option_fields()]


@pytest.mark.parametrize(
    ("given", "ours"),
    [
        ("tpsize", "tp_size"),
        ("TP-Size", "tp_size"),
        ("learningrate", "learning_rate"),
        ("lr", "learning_rate"),
        ("model", "model_name"),
        ("dataset", "dataset_name"),
        ("epochs", "num_epochs"),
        ("batch", "batch_size_per_gpu"),
        ("output-dir", "storage_path"),
        ("steps", "max_steps"),
        ("per_device_train_batch_size", "batch_size_per_gpu"),
        ("num_train_epochs", "num_epochs"),
        ("warmup_ratio", "warmup_steps"),
        ("gradient_checkpointing", "activation_checkpointing"),
        ("save_total_limit", "keep_checkpoints"),
    ],
)
def test_the_one_that_was_meant_is_named(given: str, ours: str) -> None:
    assert meant(given, FIELDS) == f"did you mean {ours}?"


def test_it_is_named_as_it_is_written_there() -> None:
    assert meant("--lr", ["--learning-rate", "--seed"]) == "did you mean --learning-rate?"
    assert meant("frist", ["first", "second"]) == "did you mean first?"


def test_where_none_is_close_the_list_is_named() -> None:
    assert meant("qqqq", FIELDS, see="tp2d train --help-all") == "tp2d train --help-all lists all"
    assert meant("lr", []) == "--help lists all"


def test_the_table_leads_from_names_that_are_not_ours_to_names_that_are() -> None:
    assert set(OTHER_NAMES.values()) <= set(FIELDS)
    assert not OTHER_NAMES.keys() & {*FIELDS, "batch_size"}
