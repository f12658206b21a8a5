"""From NumPy to the device, ahead of the step that needs it."""

from typing import TYPE_CHECKING, Any

from tp2d_data.rows.collate import Batch

if TYPE_CHECKING:
    import torch


class Arrays(dict[str, Any]):
    """A batch. A loop that asks a packed one for an `attention_mask` is told what to do instead."""

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

    def send(self, batch: Batch) -> tuple[Arrays, Any]:
        """The batch's tensors, and an event that says when they have arrived (None: they have)."""
        import torch

        tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
        if self._stream is None:
            return Arrays(tensors), None
        with self._module.stream(self._stream):
            moved = {name: t.pin_memory().to(self._device, non_blocking=True) for name, t in tensors.items()}
            return Arrays(moved), self._stream.record_event()

    def receive(self, sent: tuple[Arrays, Any]) -> Arrays:
        """The batch, safe to use on the current stream."""
        batch, arrived = sent
        if arrived is not None:
            present = self._module.current_stream(self._device)
            present.wait_event(arrived)
            for tensor in batch.values():
                tensor.record_stream(present)
        return batch
