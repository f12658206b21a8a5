"""A configuration checks itself, and takes a tutorial's dictionary as it is."""

import dataclasses
import pickle
from pathlib import Path
from typing import Any, get_args

import pytest
import tp2d_data
import tp2d_mesh
from tp2d_data.sampling.sharding import LastBatch
from tp2d_mesh import devices
from tp2d_train.config import SCHEDULES, TrainConfig, option_fields
from tp2d_train.engines import ENGINES
from tp2d_train.fields import choices_of

# The keys of the two Ray Train templates, with their values.
TUTORIAL = {
    "model_name": "Qwen/Qwen2.5-0.5B",
    "dataset_name": "wikitext",
    "dataset_percentage": 10.0,
    "tp_size": 2,
    "dp_size": 2,
    "batch_size_per_gpu": 1,
    "seq_length": 512,
    "num_epochs": 3,
    "learning_rate": 1e-5,
    "weight_decay": 0.01,
    "log_interval": 10,
    "debug_steps": 0,
    "seed": 42,
    "zero_stage": 1,
    "gradient_accumulation_steps": 1,
    "max_grad_norm": 1.0,
}


def test_a_tutorials_dictionary_is_taken_as_it_is() -> None:
    config = TrainConfig(**TUTORIAL)
    assert {name: getattr(config, name) for name in TUTORIAL} == TUTORIAL | {"dataset_name": ("wikitext",)}
    assert (config.num_workers, config.global_batch_size) == (4, 2)


def test_a_named_model_gets_the_tutorials_defaults_and_a_built_in_one_its_own() -> None:
    named, builtin = TrainConfig(model_name="Qwen/Qwen2.5-0.5B"), TrainConfig()
    tutorial = {name: TUTORIAL[name] for name in ("seq_length", "batch_size_per_gpu", "learning_rate", "weight_decay")}
    assert {name: getattr(named, name) for name in tutorial} == tutorial
    assert builtin.learning_rate > 100 * named.learning_rate
    assert TrainConfig(learning_rate=1e-5, model_name="builtin:tiny").learning_rate == 1e-5


def test_batch_size_is_another_name() -> None:
    assert TrainConfig(batch_size=3).batch_size_per_gpu == 3
    with pytest.raises(ValueError, match="batch_size_per_gpu is 2 and its other name batch_size is 3"):
        TrainConfig(batch_size=3, batch_size_per_gpu=2)


def test_it_survives_dictionaries_pickles_and_replacement() -> None:
    config = TrainConfig(batch_size=3, runtime_env={"pip": ["x"]}, max_grad_norm=None)
    assert TrainConfig(**config.as_dict()) == config == pickle.loads(pickle.dumps(config))
    assert dataclasses.replace(config, seed=1) == TrainConfig(**config.as_dict() | {"seed": 1})


@pytest.mark.parametrize(
    ("given", "mesh"),
    [
        ({}, (4, 2, 2)),
        ({"tp_size": 4}, (4, 1, 4)),
        ({"tp_size": 1, "dp_size": 1}, (1, 1, 1)),
        ({"num_workers": 8}, (8, 4, 2)),
        ({"dp_size": 3}, (6, 3, 2)),
    ],
)
def test_the_mesh_follows_from_what_is_given(given: dict[str, int], mesh: tuple[int, int, int]) -> None:
    config = TrainConfig(**given)
    assert (config.num_workers, config.dp_size, config.tp_size) == mesh


def test_the_accumulation_follows_from_the_global_batch() -> None:
    assert TrainConfig(batch_size=2, global_batch_size=12).gradient_accumulation_steps == 3
    assert TrainConfig(batch_size=2, gradient_accumulation_steps=3).global_batch_size == 12


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_workers": 3}, r"tp_size 2 x dp_size 1 = 2, but num_workers is 3"),
        ({"num_workers": 4, "dp_size": 4}, r"tp_size 2 x dp_size 4 = 8, but num_workers is 4"),
        ({"tp_size": 8}, r"tp_size 8 x dp_size 1 = 8, but num_workers is 4"),
        ({"batch_size": 2, "global_batch_size": 9}, r"9 is not dp_size 2 x .*_gpu 2 x .*_steps 2 = 8: .* of 4"),
        ({"batch_size": 2, "global_batch_size": 2}, r"2 is not dp_size 2 x .*_gpu 2 x .*_steps 1 = 4: .* of 4"),
        ({"batch_size": 2, "global_batch_size": 8, "gradient_accumulation_steps": 1}, r"_steps 1 = 4"),
        ({"dataset_percentage": 0}, r"dataset_percentage must be above 0 and at most 100, not 0"),
        ({"dataset_percentage": 101}, r"dataset_percentage must be above 0 and at most 100, not 101"),
        ({"dataset_percentage": float("nan")}, r"dataset_percentage must be above 0 and at most 100, not nan"),
        ({"learning_rate": float("inf")}, r"learning_rate must be above 0, not inf"),
        ({"learning_rate": "fast"}, r"learning_rate must be a number, not 'fast'"),
        ({"tp_size": "two"}, r"tp_size must be a whole number, not 'two'"),
        ({"compile": "yes"}, r"compile must be true or false, not 'yes'"),
        ({"dataset_weights": "1,x"}, r"dataset_weights must be numbers such as 0.7,0.3, not '1,x'"),
        ({"dataset_name": []}, r"dataset_name is empty"),
        ({"batch_size": 0}, r"batch_size_per_gpu must be at least 1, not 0"),
        ({"seq_length": -1}, r"seq_length must be at least 2, not -1"),
        ({"tp_size": 2.0}, r"tp_size must be int, not 2.0"),
        ({"tp_size": True}, r"tp_size must be int, not True"),
        ({"tp_size": None}, r"tp_size must be int, not None"),
        ({"num_epochs": 0}, r"num_epochs must be at least 1, not 0"),
        ({"engine": "megatron"}, r"unknown engine 'megatron': choose fsdp2"),
        ({"resume": "maybe"}, r"unknown resume 'maybe': choose auto, must, never"),
        ({"name": ""}, r"name is empty"),
        ({"modle_name": "x"}, r"unknown option modle_name; did you mean model_name\?"),
        ({"lr": 1e-4}, r"unknown option lr; did you mean learning_rate\?"),
        ({"tp_sise": 1, "qqqq": 2}, r"unknown option tp_sise; did you mean tp_size\?"),
        ({"qqqq": 2}, r"unknown option qqqq; tp2d train --help-all lists all"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**given)


def test_every_field_has_help_of_one_line() -> None:
    for field in option_fields():
        assert 10 < len(field.metadata["help"]) < 100, field.name
        assert "\n" not in field.metadata["help"]


def test_the_names_in_the_options_are_those_of_the_packages() -> None:
    """Where a package's table needs torch they stand in config.py as literals."""
    assert {field.name: set(choices_of(field)) for field in option_fields() if choices_of(field)} == {
        "precision": {"auto", *tp2d_mesh.PRECISIONS} - {"fp64"},  # fp64 is for checking parity
        "device": set(devices.KINDS),
        "optimizer": set(tp2d_mesh.OPTIMIZERS),
        "activation_checkpointing": set(tp2d_mesh.RECOMPUTATION),
        "engine": set(ENGINES),
        "loss_on": set(get_args(tp2d_data.LossOn)),
        "packing": set(get_args(tp2d_data.Mode)),
        "last_batch": set(get_args(LastBatch)),
        "lr_scheduler": set(SCHEDULES),
        "resume": {"auto", "must", "never"},
        "launcher": {"ray", "local"},
        "on_spike": {"warn", "stop"},
        "log_level": {"debug", "info", "warning", "error"},
        "progress": {"auto", "bar", "lines", "quiet"},
    }


def test_a_label_that_is_not_trained_on_is_the_same_in_the_data_and_in_the_loss() -> None:
    assert tp2d_data.IGNORED == tp2d_mesh.IGNORED


def test_the_defaults_of_the_data_are_those_of_the_package() -> None:
    """For a named model; what differs is the holdout, of which the app makes an evaluation."""
    named = TrainConfig(model_name="org/model", streaming=True, max_steps=1)
    corpus = tp2d_data.Corpus(dataset_name="builtin:stdlib", holdout_percentage=1.0)
    packing = tp2d_data.Packing(seq_length=512)
    assert named.data == tp2d_data.DataSpec(corpora=(corpus,), packing=packing, stream=tp2d_data.Stream())
    assert TrainConfig(model_name="org/model").data.stream is None
    sharding = tp2d_data.Sharding(batch_size_per_gpu=1, dp_rank=0, dp_size=1)
    assert (named.seed, named.last_batch) == (sharding.seed, sharding.last_batch)


def test_every_option_of_the_data_reaches_its_value() -> None:
    config = TrainConfig(
        dataset_name="a,b",
        dataset_weights="3,1",
        dataset_config="c",
        split="s",
        dataset_percentage=7,
        holdout_percentage=5,
        eval_dataset="b,e",
        loss_on="completion",
        text_field="t",
        prompt_field="p",
        completion_field="q",
        messages_field="m",
        seq_length=33,
        packing="concat",
        respect_boundaries=False,
        append_eos=False,
        streaming=True,
        block_tokens=99,
        max_steps=1,
    )
    corpora = tuple(
        tp2d_data.Corpus(
            dataset_name=name, dataset_config="c", split="s", dataset_percentage=7.0, holdout_percentage=5.0
        )
        for name in ("a", "b")
    )
    # A configuration is a training dataset's; another dataset has others.
    evaluated = (
        tp2d_data.Corpus(dataset_name="b", dataset_config="c", split="s"),
        tp2d_data.Corpus(dataset_name="e", split="s"),
    )
    assert config.data == tp2d_data.DataSpec(
        corpora=corpora,
        eval_corpora=evaluated,
        weights=(3.0, 1.0),
        task=tp2d_data.Task(
            loss_on="completion", text_field="t", prompt_field="p", completion_field="q", messages_field="m"
        ),
        packing=tp2d_data.Packing(mode="concat", seq_length=33, respect_boundaries=False, append_eos=False),
        stream=tp2d_data.Stream(block_tokens=99),
    )


def test_the_layout_is_the_mesh() -> None:
    assert TrainConfig(dp_size=3, tp_size=2).layout == tp2d_mesh.Layout(dp=3, tp=2)


def test_several_datasets_are_text_a_list_or_paths() -> None:
    """A list as YAML has it, text as a command line has it."""
    names = [TrainConfig(dataset_name=given).dataset_name for given in ("a,b", "a, b", ["a", "b"], ("a", Path("b")))]
    assert names == [("a", "b")] * 4
    weights = [TrainConfig(dataset_weights=given).dataset_weights for given in ("3,1", [3, 1], (3.0, 1.0))]
    assert weights == [(3.0, 1.0)] * 3


@pytest.mark.parametrize(("stored", "meant"), [(True, "full"), (False, "none"), ("selective", "selective")])
def test_recomputation_of_a_run_stored_by_an_earlier_version(stored: bool | str, meant: str) -> None:
    assert TrainConfig(activation_checkpointing=stored).activation_checkpointing == meant
