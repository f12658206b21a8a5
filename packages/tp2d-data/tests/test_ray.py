"""Real Ray Train, four CPU workers on 2x2: who reads what, what the peers see, where an epoch ends and goes on."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

pytest.importorskip("ray.train", reason="the [ray] extra is not installed")
pytest.importorskip("ray.data", reason="the [ray] extra is not installed")

from tp2d_data import load_tokenizer
from tp2d_data.ray import MeshDataConfig, RayLoader, Task

QUICK = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
DOCUMENTS, SEQ_LENGTH, BATCH = 200, 16, 2


@pytest.fixture
def cluster(monkeypatch):
    import ray

    for name, value in QUICK.items():
        monkeypatch.setenv(name, value)
    ray.init(
        address="local",
        num_cpus=5,
        include_dashboard=False,
        log_to_driver=False,
        object_store_memory=128 << 20,
        logging_config=ray.LoggingConfig(log_level="ERROR"),
    )
    yield
    ray.shutdown()


def document(number: int) -> str:
    """Some words, from two to longer than a row; each document's are its own number."""
    return " ".join([f"w{number}"] * (2 + number * 7 % 23))


def make_train():
    """What each worker does: several epochs, all it saw written to a file."""

    def train(config):  # nested, so that Ray ships it by value
        import ray.train

        rank = dist.get_rank()
        pairs = [[0, 1], [2, 3]], [[0, 2], [1, 3]]
        tp_group, dp_group = (dist.new_subgroups_by_enumeration(ranks)[0] for ranks in pairs)
        shard = ray.train.get_dataset_shard("train")

        def make(last_batch):
            return RayLoader(
                shard,
                tokenizer=load_tokenizer(config["words"]),
                seq_length=SEQ_LENGTH,
                batch_size_per_gpu=BATCH,
                tp_group=tp_group,
                dp_group=dp_group,
                last_batch=last_batch,
                window_tokens=600,
            )

        def listed(batches):
            return [{name: tensor.tolist() for name, tensor in batch.items()} for batch in batches]

        seen = {"has_shard": shard is not None}
        for last_batch in ("pad", "drop"):
            loader = make(last_batch)
            seen[last_batch], seen[f"{last_batch} left out"] = listed(loader), loader.left_out
        loader.sampler.set_epoch(1)
        batches = iter(loader)
        seen["begun"] = listed([next(batches), next(batches)])
        state = json.loads(json.dumps(loader.state_dict()))
        seen["state"], seen["rest"] = state, listed(batches)
        resumed = make("drop")
        resumed.load_state_dict(state)
        resumed.sampler.set_epoch(1)
        seen["resumed"] = listed(resumed)
        Path(config["folder"], f"{rank}.json").write_text(json.dumps(seen))

    return train


def documents_of(batches) -> list[int]:
    """Numbers of the documents whose beginnings stand in some batches, after checks of every row."""
    found = []
    for batch in batches:
        ids, labels, positions = (torch.tensor(batch[name]) for name in ("input_ids", "labels", "position_ids"))
        assert ids.shape == labels.shape == positions.shape == (BATCH, SEQ_LENGTH)
        inside = labels != -100
        assert torch.equal(labels[inside], ids[inside]) and not labels[positions == 0][..., None].ne(-100).any()
        # A token that is learnt follows one of the same document: nothing is predicted across a boundary.
        assert torch.equal(ids[:, 1:][inside[:, 1:]], ids[:, :-1][inside[:, 1:]])
        begins = (positions == 0) & (ids > 1)
        found += (ids[begins] - 2).tolist()
    return found


def learnt(batches) -> int:
    return sum(label != -100 for batch in batches for row in batch["labels"] for label in row)


@pytest.mark.timeout(300)
def test_four_workers_read_every_document_once_and_peers_see_the_same(cluster, tmp_path, words):
    """Red if two ranks get one document, if peers' batches differ, if a rank ends alone (a hang), if a row is wrong."""
    import ray.data
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    dataset = ray.data.from_items([{"text": document(n)} for n in range(DOCUMENTS)], override_num_blocks=7)
    TorchTrainer(
        make_train(),
        train_loop_config={"words": words, "folder": str(tmp_path)},
        datasets={"train": dataset},
        dataset_config=MeshDataConfig(tp_size=2),
        scaling_config=ScalingConfig(num_workers=4),
        torch_config=TorchConfig(backend="gloo"),
        run_config=RunConfig(name="run", storage_path=str(tmp_path / "runs")),
    ).fit()
    seen = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(4)]
    assert [one.pop("has_shard") for one in seen] == [True, False, True, False]
    assert seen[0] == seen[1] and seen[2] == seen[3]
    padded = [one["pad"] for one in (seen[0], seen[2])]
    begins = [documents_of(batches) for batches in padded]
    assert set(begins[0]).isdisjoint(begins[1]) and len(set(begins[0])) == DOCUMENTS // 2
    assert {*begins[0], *begins[1]} == set(range(DOCUMENTS))
    # Every token but a document's first is learnt once: documents longer than a row are cut, and nothing of them lost.
    assert sum(map(learnt, padded)) == sum(1 + number * 7 % 23 for number in range(DOCUMENTS))
    assert len(padded[0]) == len(padded[1]) and [one["pad left out"] for one in seen] == [0] * 4
    check_drop(seen)


def check_drop(seen) -> None:
    """The epoch ends with the rank of the fewest whole batches, and says what that left out; positions go on there."""
    rows = [sum(any(label != -100 for label in row) for batch in one["pad"] for row in batch["labels"]) for one in seen]
    whole = min(rows) // BATCH
    left_out = rows[0] + rows[2] - 2 * whole * BATCH
    assert [len(one["drop"]) for one in seen] == [whole] * 4 and left_out > 0
    assert [one["drop left out"] for one in seen] == [left_out] * 4
    for one in seen:
        assert one["drop"] == one["pad"][:whole]  # the order is one of (seed, epoch)
        assert one["resumed"] == one["rest"] and len(one["begun"]) + len(one["rest"]) == whole
        assert one["begun"] != one["drop"][:2]  # another epoch, another order
        assert one["state"] == seen[0]["state"] and one["state"]["samples"] == 2 * 2 * BATCH


@pytest.fixture
def alone(tmp_path):
    """A world of this process: (tp_group, dp_group)."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD, dist.group.WORLD
    dist.destroy_process_group()


class Table:
    """A shard that is here already."""

    def __init__(self, rows):
        self._rows = rows

    def iter_batches(self, *, batch_size, batch_format):
        import pyarrow

        assert batch_format == "pyarrow"
        for at in range(0, len(self._rows), batch_size):
            yield pyarrow.Table.from_pylist(self._rows[at : at + batch_size])


def load(groups, words, rows, **options):
    given = {"seq_length": 8, "batch_size_per_gpu": 2, "tp_group": groups[0], "dp_group": groups[1]}
    return RayLoader(rows and Table(rows), tokenizer=load_tokenizer(words), **(given | options))


ROWS = [{"text": document(n), "prompt": f"w{n}", "completion": "w1 w2"} for n in range(40)]


def test_a_loader_left_early_can_be_iterated_again(alone, words):
    loader = load(alone, words, ROWS, prefetch=1)
    first = next(iter(loader))
    again = list(loader)
    assert torch.equal(first["input_ids"], again[0]["input_ids"]) and loader.left_out in (0, 1)
    with pytest.raises(TypeError, match="a loader of Ray Data has no length"):
        len(loader)


@pytest.mark.parametrize("packing", ["pad", "concat", "best_fit"])
def test_batches_are_those_of_the_other_loader(alone, words, tmp_path, packing):
    """The same rows as `create_dataloader` makes of the same documents, whatever their order."""
    from tp2d_data import create_dataloader

    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    other = {"dataset_percentage": 100, "packing": packing, "last_batch": "pad", "cache_dir": tmp_path / "cache"}
    theirs = create_dataloader(words, str(path), 8, 2, 0, 1, **other)
    ours = load(alone, words, ROWS, packing=packing, last_batch="pad")

    def rows(loader):
        return sorted([tensor[row].tolist() for tensor in batch.values()] for batch in loader for row in range(2))

    assert rows(ours) == rows(theirs)


def test_a_prompt_is_not_learnt(alone, words):
    loader = load(alone, words, ROWS, task=Task(loss_on="completion"), last_batch="pad")
    assert sum(int((batch["labels"] != -100).sum()) for batch in loader) == 3 * len(ROWS)


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (None, {}, r"tp rank 0 of 1 has no shard of the dataset, but tp rank 0 reads for all of its group; give the"),
        (ROWS, {"window_tokens": 0}, "window_tokens must be at least 1, not 0"),
        (ROWS, {"batch_size_per_gpu": 0}, "batch_size_per_gpu must be at least 1, not 0"),
    ],
)
def test_refused(alone, words, rows, options, message):
    with pytest.raises(ValueError, match=message):
        load(alone, words, rows, **options)


def test_a_missing_column_is_named(alone, words):
    with pytest.raises(ValueError, match="dp rank 0 has no field 'body'; it has text, prompt, completion: choose one"):
        next(iter(load(alone, words, ROWS, task=Task(text_field="body"))))


def test_positions_of_something_else_are_refused(alone, words):
    loader = load(alone, words, ROWS)
    state = loader.state_dict()
    with pytest.raises(
        ValueError, match="is of dp_size 2 and here it is 1, for which Ray Data splits the dataset other"
    ):
        loader.load_state_dict({**state, "dp_size": 2})
    with pytest.raises(ValueError, match="a position has the keys epoch, samples, dp_size and data, this one has"):
        loader.load_state_dict({"epoch": 0})
    with pytest.raises(ValueError, match="belongs to other rows"):
        loader.load_state_dict(load(alone, words, ROWS, seq_length=9).state_dict())


def test_workers_that_fill_no_mesh_are_refused():
    with pytest.raises(
        ValueError, match="num_workers 3 is not a multiple of tp_size 2; give dp_size x tp_size workers"
    ):
        MeshDataConfig(tp_size=2).configure({}, 3)
