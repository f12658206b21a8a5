"""Models that look ahead, on the way of the command line: refused on the driver, at tp 1 too."""

from pathlib import Path
from typing import Any

import pytest
from tp2d_train.config import TrainConfig
from tp2d_train.setup.check import check

from apps.train.tests.folders import save_config

SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def start(folder: Path, *, packing: str = "pad", **model: Any) -> None:
    name = str(save_config(folder, **SMALL, **model))
    one_rank = {"tp_size": 1, "num_workers": 1, "launcher": "local"}
    settings = {"from_scratch": True, "tokenizer_name": "builtin:tiny", "seq_length": 32, "packing": packing}
    check(TrainConfig(model_name=name, **settings, **one_rank), progress=lambda line: None)


@pytest.mark.parametrize("family", ["bert", "roberta", "electra"])
def test_a_model_that_looks_ahead(tmp_path: Path, family: str) -> None:
    """Shows a model that sees the token it is to predict: its loss is fine and it is useless."""
    message = f"'{family}' is not causal: a logit depends on later tokens.* Set is_decoder=True in its configuration"
    with pytest.raises(ValueError, match=message):
        start(tmp_path / "model", model_type=family)


def test_the_way_out_that_the_message_names(tmp_path: Path) -> None:
    start(tmp_path / "model", model_type="bert", is_decoder=True)


def test_a_causal_family_with_a_mask_that_hides_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'gemma3_text' has use_bidirectional_attention=True"):
        start(tmp_path / "model", model_type="gemma3_text", head_dim=16, use_bidirectional_attention=True)
