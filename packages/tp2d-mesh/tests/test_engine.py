"""What both engines take checks itself."""

import pickle
import re
from typing import Any

import pytest
from tp2d_mesh import EngineSpec


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp8"}, "precision='fp8' is not known: choose one of auto, fp64, fp32, bf16, bf16-pure, fp16."),
        ({"optimizer": "lion"}, "optimizer='lion' is not known; choose from adamw, sgd."),
        (
            {"activation_checkpointing": "some"},
            "activation_checkpointing='some' is not known; choose from none, selective, full.",
        ),
        ({"learning_rate": -1.0}, "learning_rate=-1.0 is negative: give 0 or more."),
        ({"weight_decay": float("nan")}, "weight_decay=nan is negative: give 0 or more."),
        ({"max_grad_norm": 0.0}, "max_grad_norm=0.0 is not a norm to clip to: give more than 0, or None."),
    ],
)
def test_refused_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        EngineSpec(**options)


def test_a_spec_is_a_value_that_travels_to_the_ranks() -> None:
    spec = EngineSpec(precision="auto", learning_rate=0.0, max_grad_norm=None)
    assert pickle.loads(pickle.dumps(spec)) == spec
