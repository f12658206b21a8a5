"""`create_dataloader` is a cover over `DataSpec`: the same defaults, the same batches."""

import dataclasses
import inspect

import pytest
import torch
from tp2d_data import Corpus, DataSpec, Packing, Sharding, Stream, Task, create_dataloader, load_tokenizer

SIGNATURE = inspect.signature(create_dataloader).parameters
# The arguments that are not called as the field they fill.
NAMES = {"weights": "dataset_weights", "mode": "packing"}


@pytest.mark.parametrize("kind", [Corpus, Task, Packing, Stream, Sharding])
def test_defaults_are_those_of_the_fields(kind):
    for field in dataclasses.fields(kind):
        if field.default is not dataclasses.MISSING:
            assert SIGNATURE[NAMES.get(field.name, field.name)].default == field.default, field.name


def test_other_defaults_are_those_of_the_spec():
    fields = {field.name: field for field in dataclasses.fields(DataSpec)}
    assert SIGNATURE["dataset_weights"].default is fields["weights"].default is None
    assert SIGNATURE["eval_dataset"].default == fields["eval_corpora"].default == ()
    assert SIGNATURE["cache_dir"].default is fields["cache_dir"].default is None
    assert not SIGNATURE["streaming"].default and fields["stream"].default is None
    assert fields["task"].default_factory() == Task()
    opening = inspect.signature(DataSpec.open).parameters
    for name in ("part", "device", "num_workers", "prefetch", "progress"):
        assert SIGNATURE[name].default == opening[name].default


def test_every_argument_reaches_a_value():
    """A field added to one of the values must be an argument too."""
    values = [field.name for kind in (Corpus, Task, Packing, Stream, Sharding) for field in dataclasses.fields(kind)]
    arguments = {NAMES.get(name, name) for name in values} | set(inspect.signature(DataSpec.open).parameters)
    arguments -= {"self", "tokenizer", "sharding"}
    assert set(SIGNATURE) == arguments | {
        "model_name",
        "eval_dataset",
        "tokenizer_name",
        "trust_remote_code",
        "dataset_weights",
        "cache_dir",
        "streaming",
    }


@pytest.mark.parametrize("streaming", [False, True])
def test_the_same_batches_as_the_spec(words, tmp_path, streaming):
    path = tmp_path / "a.txt"
    path.write_text("".join(f"w{i} w{i + 1} <eos>\n" for i in range(60)))
    cache = tmp_path / "cache"
    spec = DataSpec(
        corpora=(Corpus(dataset_name=str(path), dataset_percentage=50, holdout_percentage=20),),
        packing=Packing(seq_length=8),
        stream=Stream(block_tokens=30) if streaming else None,
        cache_dir=cache,
    )
    spec.check(load_tokenizer(words))
    sharding = Sharding(batch_size_per_gpu=2, dp_rank=0, dp_size=1, seed=3)
    given = {"dataset_percentage": 50, "holdout_percentage": 20, "seed": 3, "streaming": streaming, "block_tokens": 30}
    for part in ("train", "eval"):
        opened = spec.open(load_tokenizer(words), part=part, sharding=sharding)
        created = create_dataloader(words, str(path), 8, 2, 0, 1, part=part, cache_dir=cache, **given)
        assert opened.state_dict() == created.state_dict()
        for mine, its in zip(opened, created, strict=True):
            assert all(torch.equal(mine[name], its[name]) for name in mine)
