"""The most bytes of tensors that a block of code has alive at once, on any device, `meta` and fake tensors included.

    with peak_bytes() as peak:
        loss = model(**batch)
        loss.backward()
    assert peak.bytes < 2**30

On the meta device no memory is needed, so that sizes far beyond the machine's can be measured.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass_type
from torch.utils._pytree import tree_leaves

Apart = Callable[[], Iterable[torch.Tensor]]
"""Says which tensors are not to be counted now."""


class Peak:
    """What a block has had alive.

    Attributes:
        bytes: the most at once so far of the storages that operators within the block made.
    """

    def __init__(self, apart: Apart | None = None) -> None:
        self.bytes = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self._at_most = 0  # bytes alive, with what has died since the last look at all of them
        self._apart = apart

    def now(self) -> int:
        """Bytes alive now, a storage that was resized since it was made with its size of now (FSDP2 does that)."""
        found = ((key, reference, _size(reference)) for key, (reference, _) in self._alive.items())
        self._alive = {key: (reference, size) for key, reference, size in found if size is not None}
        self._at_most = sum(size for _, size in self._alive.values())
        if self._apart is None:
            return self._at_most
        apart = {tensor.untyped_storage()._cdata for tensor in self._apart()}
        return sum(size for key, (_, size) in self._alive.items() if key not in apart)

    def restart(self) -> None:
        """Forget the peak so far; what is alive stays counted."""
        self.bytes = self.now()

    def _add(self, given: Sequence[torch.Tensor], made: Sequence[torch.Tensor]) -> None:
        storages = {storage._cdata: storage for storage in (tensor.untyped_storage() for tensor in given)}
        for key in storages.keys() & self._alive.keys():  # one that grew is an operator's argument before it is read
            self._at_most += max(0, storages[key].nbytes() - self._alive[key][1])
            self._alive[key] = (self._alive[key][0], storages[key].nbytes())
        for tensor in made:
            storage = tensor.untyped_storage()
            if storage._cdata not in storages:
                known = self._alive.get(storage._cdata)
                self._at_most += storage.nbytes() - (0 if known is None else known[1])
                self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        if self._at_most > self.bytes:  # else there is no need to look at all of them
            self.bytes = max(self.bytes, self.now())


def _size(reference: StorageWeakRef) -> int | None:
    """Bytes of a storage; None: it is gone."""
    storage = torch.UntypedStorage._new_with_weak_ptr(reference.cdata)  # type: ignore[attr-defined]
    return None if storage is None else int(storage.nbytes())


@contextmanager
def peak_bytes(*, apart: Apart | None = None) -> Iterator[Peak]:
    """Within the block, the storages that operators make are counted for as long as they live.

    Counted after each operator, with its inputs and outputs alive: what a kernel needs inside is not seen. Tensors
    that exist before the block are not counted, and what they are changed to in place takes nothing.

    Args:
        apart: asked at every count for tensors to leave out, for instance the gradients that a plan counts apart.
    """
    peak = Peak(apart)
    with _Watch(peak):
        yield peak


class _Watch(TorchDispatchMode):
    def __init__(self, peak: Peak) -> None:
        super().__init__()
        self.peak = peak

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if any(map(is_traceable_wrapper_subclass_type, types)):
            return NotImplemented  # a DTensor has no memory of its own: its operators on local tensors come here next
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self.peak._add(_tensors((args, kwargs)), _tensors(out))
        return out


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
