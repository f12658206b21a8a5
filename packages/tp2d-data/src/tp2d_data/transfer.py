"""From NumPy to the device, ahead of the step that needs it."""

from typing import TYPE_CHECKING, Any

from tp2d_data.collate import Batch

if TYPE_CHECKING:
    import torch


class Arrays(dict[str, Any]):
    """A batch; one that a tutorial's loop asks for a mask says what to do."""

    def __missing__(self, key: str) -> Any:
        if key == "attention_mask":
            raise KeyError(
                "a packed batch has no attention_mask: pass position_ids on and no mask, or use packing='pad'"
            )
        raise KeyError(key)


class Transfer:
    """Makes tensors of batches: on the CPU without copying; elsewhere through pinned memory, on a stream of its own.

    `send` may be called in any thread; `receive` in the one that computes, where it lets the present stream wait for
    the copy, and the host for nothing.

    Args:
        device: where the batches go; None: they stay on the CPU.
    """

    def __init__(self, device: "torch.device | str | None") -> None:
        import torch

        self._device = torch.device("cpu" if device is None else device)
        self._module: Any = torch.get_device_module(self._device)
        self._stream: Any = None if self._device.type == "cpu" else self._module.Stream(self._device)

    def send(self, batch: Batch) -> tuple[Arrays, Any]:
        """The batch's tensors, and an event that says when they are there (None: they are)."""
        import torch

        tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
        if self._stream is None:
            return Arrays(tensors), None
        with self._module.stream(self._stream):
            moved = {name: t.pin_memory().to(self._device, non_blocking=True) for name, t in tensors.items()}
            return Arrays(moved), self._stream.record_event()

    def receive(self, sent: tuple[Arrays, Any]) -> Arrays:
        """The batch, safe to use on the present stream."""
        batch, arrived = sent
        if arrived is not None:
            present = self._module.current_stream(self._device)
            present.wait_event(arrived)
            for tensor in batch.values():
                tensor.record_stream(present)
        return batch
