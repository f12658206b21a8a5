"""The random state of one rank: of Python, of NumPy, and of torch on the CPU and on the device.

It consists of lists, numbers, strings and tensors, so a file of it needs no pickled code.
"""

import random
from typing import Any

import numpy as np
import torch
from tp2d_mesh import devices


def capture_rng(device: torch.device) -> dict[str, Any]:
    """The state of all random generators of this process.

    Args:
        device: the device whose generator is in use beside the CPU's.

    Returns:
        What `restore_rng` takes and `Checkpointer.save` accepts in `rank_state`: nested dicts and lists of numbers,
        strings and CPU tensors.
    """
    version, internal, gauss = random.getstate()
    return {
        "python": [version, list(internal), gauss],
        "numpy": _numpy_state(),
        "torch": torch.get_rng_state(),
        "device_type": device.type,
        "device": devices.get_rng_state(device),
    }


def restore_rng(state: dict[str, Any], device: torch.device) -> None:
    """Set all random generators of this process to a state that `capture_rng` returned.

    Raises:
        ValueError: the state was taken with another type of device, whose generator produces other numbers.
    """
    if state["device_type"] != device.type:
        raise ValueError(
            f"the random state was taken on {state['device_type']} and this run is on {device.type}, whose generator "
            "produces other numbers: seed the generators anew."
        )
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    key, pos = state["numpy"]["state"]["key"], state["numpy"]["state"]["pos"]
    np.random.set_state({**state["numpy"], "state": {"key": key.numpy().astype(np.uint32), "pos": pos}})
    torch.set_rng_state(state["torch"])
    devices.set_rng_state(state["device"], device)


def _numpy_state() -> dict[str, Any]:
    """NumPy's global generator, with its key as a tensor of int64."""
    found = dict(np.random.get_state(legacy=False))
    key, pos = found["state"]["key"], found["state"]["pos"]
    return {**found, "state": {"key": torch.from_numpy(key.astype(np.int64)), "pos": int(pos)}}
