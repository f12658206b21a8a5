"""The random state of one rank: Python's, NumPy's, torch's on the CPU and on the device.

Lists, numbers, strings and tensors only, so that it is stored without pickled code.
"""

from __future__ import annotations

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
        What `restore_rng` takes and `Checkpointer.save` accepts as ``rank_state``: nested dicts and lists of numbers,
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
    """Put all random generators where `capture_rng` found them.

    Raises:
        ValueError: the state was taken with another type of device, whose generator makes other numbers.
    """
    if state["device_type"] != device.type:
        raise ValueError(
            f"the random state was taken on {state['device_type']} and this run is on {device.type}, whose generator "
            "makes other numbers: seed the generators anew."
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
