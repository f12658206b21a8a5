"""The table of engines."""

import dataclasses
import pkgutil
import subprocess
import sys
from typing import Any

import pytest
from tp2d_mesh import EngineSpec
from tp2d_train.config import TrainConfig, option_fields
from tp2d_train.contracts import Engine
from tp2d_train.engines import ENGINES, EngineKind


def test_an_unknown_engine_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown engine 'megatron': choose fsdp2, autotp"):
        TrainConfig(engine="megatron")


@pytest.mark.parametrize("kind", ENGINES.values(), ids=ENGINES)
def test_an_entry_has_what_the_loop_needs(kind: EngineKind) -> None:
    """That the methods do what they say is tested with the worker."""
    engine = pkgutil.resolve_name(kind.engine)
    methods = [name for name, value in vars(Engine).items() if callable(value) and not name.startswith("_")]
    assert "train_step" in methods and not [name for name in methods if not hasattr(engine, name)]
    assert callable(pkgutil.resolve_name(kind.check))
    assert issubclass(pkgutil.resolve_name(kind.spec), EngineSpec)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engines_settings_are_the_options_of_their_names(engine: str) -> None:
    """Shows an option that does not reach the engine, and one whose default is another there."""
    changed: dict[str, Any] = {
        "precision": "bf16",
        "optimizer": "sgd",
        "learning_rate": 0.5,
        "weight_decay": 0.5,
        "max_grad_norm": None,
        "seed": 7,
        "activation_checkpointing": "full",
        "compile": True,
        "gather_once": False,
        "float8": True,
        "attn_implementation": "eager",
        "trust_remote_code": True,
        "zero_stage": 2,
        "deepspeed_config": "ds.json",
        "batch_size_per_gpu": 3,
        "gradient_accumulation_steps": 5,
    }
    spec = TrainConfig(engine=engine, **changed).engine_spec
    fields = {field.name for field in dataclasses.fields(spec)}
    own = fields - {field.name for field in option_fields()}
    assert own == {"verified_only", "compile_backend"} | ({"overlap_comm"} if engine == "autotp" else set())
    assert {name: getattr(spec, name) for name in fields & changed.keys()} == {
        name: value for name, value in changed.items() if name in fields
    }
    assert fields == own | (fields & changed.keys()), "a setting that this test leaves at its default"
    usual = TrainConfig(engine=engine, model_name="org/model").engine_spec
    assert dataclasses.replace(usual, precision=spec.precision) == type(spec)(precision=spec.precision)


def test_engines_are_imported_when_they_are_created() -> None:
    """A run of one engine must not need, or wait for, the packages of the other."""
    code = "import sys, tp2d_train.config; print({'tp2d_mesh', 'tp2d_fsdp2', 'deepspeed', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
