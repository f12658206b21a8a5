"""Whether all ranks have found the same data and the same model, once all of them are there.

Every rank looks for them by itself. Nodes with storage of their own may hold another copy, a hub may publish a new
commit in between, another Python has another built-in text. Nothing would fail then, and no loss curve would show it.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from hashlib import blake2b
from pathlib import Path

import torch.distributed as dist
from tp2d_data import Loader

from tp2d_train.setup.model import ResolvedModel

PATIENCE = timedelta(days=7)
_SAMPLES, _SAMPLE_BYTES = 16, 4096  # of a file of weights, which nobody reads whole here


@contextmanager
def patient_group() -> Iterator[dist.ProcessGroup]:
    """A group of all ranks that waits as long as they live; a collective.

    Nodes may tokenise for hours, and not equally fast. With a run's own time-out the fastest rank would give up
    waiting. A process that ends closes its connections, which ends the wait of the others.
    """
    group = dist.new_group(backend="gloo", timeout=PATIENCE)
    yield group
    dist.destroy_process_group(group)  # not after an error: its peers would fail of that, and could say so first


def check_agreement(found: Mapping[str, str], *, node: str, group: dist.ProcessGroup) -> None:
    """Refuses a run whose ranks have found different things by the same names; a collective.

    Args:
        found: an option -> a hash of what this rank has found by it.
        node: the name of this rank's node.
        group: of all ranks.

    Raises:
        ValueError: the option, on every rank, with the first rank that differs from rank 0, and their nodes.
    """
    everyone: list[tuple[str, dict[str, str]]] = [("", {})] * group.size()
    dist.all_gather_object(everyone, (node, dict(found)), group=group)
    first_node, first = everyone[0]
    for rank, (other_node, other) in enumerate(everyone):
        for option, value in first.items():
            if other[option] != value:
                raise ValueError(
                    f"{option}: rank {rank} on {other_node} has found something else than rank 0 on {first_node}; give "
                    "a folder that every node sees, or equal copies (with equal times of the files for streaming)"
                )


def data_hash(loader: Loader | None) -> str:
    """A hash of the rows of a loader and their order, on any number of ranks; "" without a loader."""
    return "" if loader is None else str(loader.state_dict()["data"])


def model_hash(model: ResolvedModel) -> str:
    """A hash of a configuration, and of the weights' names, sizes and some bytes of every file."""
    settings = json.loads(model.config.to_json_string(use_diff=False))
    settings.pop("_name_or_path", None)  # a path of this node
    found = blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=16)
    for file in sorted(model.weights.glob("*.safetensors")) if model.weights else ():
        found.update(file.name.encode())
        found.update(_samples(file))
    return found.hexdigest()


def _samples(file: Path) -> bytes:
    size = file.stat().st_size
    with file.open("rb") as opened:
        found = [size.to_bytes(8, "little")]
        for number in range(_SAMPLES):
            opened.seek(size * number // _SAMPLES)
            found.append(opened.read(_SAMPLE_BYTES))
    return b"".join(found)
