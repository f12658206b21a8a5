"""From NumPy to the device, ahead of the step that needs it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from numpy import int32
from numpy.typing import NDArray

from tp2d_data.rows.collate import Batch

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Documents:
    """Where the documents of a packed batch end, for attention that is told so and makes no mask.

    Attributes:
        ends: `(documents + 1,)` int32 on the batch's device: where each document ends in the rows laid end to end,
            from 0 on. A row's padding counts as one more.
        longest: tokens of the longest document; on the host.
        tokens: of all rows, padding counted; on the host.
    """

    ends: "torch.Tensor"
    longest: int
    tokens: int


class Arrays(dict[str, "torch.Tensor"]):
    """A batch. A loop that asks a packed one for an `attention_mask` is told what to do instead.

    Attributes:
        documents: where they end; None where rows are not packed or their boundaries do not count. It is no key of the
            dict, so that `model(**batch)` and loops over the items meet nothing but tensors of one shape, and a part
            of a batch, which is a new dict, does not keep the ends of the whole.
    """

    documents: Documents | None = None

    def __missing__(self, key: str) -> Any:
        if key == "attention_mask":
            raise KeyError(
                "a packed batch has no attention_mask: pass position_ids on and no mask, or use packing='pad'"
            )
        raise KeyError(key)


class Transfer:
    """Makes tensors of batches: on the CPU without copying, elsewhere through pinned memory on a stream of its own.

    `send` may be called in any thread, `receive` in the thread that computes. There the current stream waits for the
    copy; the host waits for nothing.

    Args:
        device: where the batches go; None: they stay on the CPU.
    """

    def __init__(self, device: "torch.device | str | None") -> None:
        import torch

        self._device = torch.device("cpu" if device is None else device)
        self._module: Any = torch.get_device_module(self._device)
        self._stream: Any = None if self._device.type == "cpu" else self._module.Stream(self._device)

    def send(self, batch: Batch, *, ends: NDArray[int32] | None = None) -> tuple[Arrays, Any]:
        """The batch's tensors, and an event that says when they have arrived (None: they have).

        Args:
            batch: of `collate`.
            ends: of its documents, as `document_ends` gives them.
        """
        if self._stream is None:
            return self._arrays(batch, ends), None
        with self._module.stream(self._stream):
            return self._arrays(batch, ends), self._stream.record_event()

    def _arrays(self, batch: Batch, ends: NDArray[int32] | None) -> Arrays:
        arrays = Arrays({name: self._moved(array) for name, array in batch.items()})
        if ends is not None:
            longest = int((ends[1:] - ends[:-1]).max())
            arrays.documents = Documents(ends=self._moved(ends), longest=longest, tokens=int(ends[-1]))
        return arrays

    def _moved(self, array: NDArray[Any]) -> "torch.Tensor":
        import torch

        tensor = torch.from_numpy(array)
        return tensor if self._stream is None else tensor.pin_memory().to(self._device, non_blocking=True)

    def receive(self, sent: tuple[Arrays, Any]) -> Arrays:
        """The batch, safe to use on the current stream."""
        batch, arrived = sent
        if arrived is not None:
            present = self._module.current_stream(self._device)
            present.wait_event(arrived)
            for tensor in (*batch.values(), *([] if batch.documents is None else [batch.documents.ends])):
                tensor.record_stream(present)
        return batch
