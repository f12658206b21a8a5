"""The most bytes of tensors that a block of code has alive at once, on any device, `meta` included.

    with peak_bytes() as peak:
        loss = model(**batch)
        loss.backward()
    assert peak.bytes < 2**30

On the meta device no memory is needed, so that sizes far beyond the machine's can be measured.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Peak:
    """What a block has had alive.

    Attributes:
        bytes: the most at once so far of the storages that operators within the block made.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def now(self) -> int:
        """Bytes alive now."""
        self._alive = {key: entry for key, entry in self._alive.items() if not entry[0].expired()}
        return sum(size for _, size in self._alive.values())

    def _add(self, tensors: Sequence[torch.Tensor], known: set[int]) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage._cdata not in known:
                self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.bytes = max(self.bytes, self.now())


@contextmanager
def peak_bytes() -> Iterator[Peak]:
    """Within the block, the storages that operators make are counted for as long as they live.

    Counted after each operator, with its inputs and outputs alive: what a kernel needs inside is not seen. Tensors
    that exist before the block are not counted, and what they are changed to in place takes nothing.
    """
    peak = Peak()
    with _Watch(peak):
        yield peak


class _Watch(TorchDispatchMode):
    def __init__(self, peak: Peak) -> None:
        super().__init__()
        self.peak = peak

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        out = func(*args, **kwargs)
        self.peak._add(_tensors(out), given)
        return out


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
