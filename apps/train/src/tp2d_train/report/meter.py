"""Where a run's time goes, and how fast it is. Rank 0 measures; its steps last as long as every rank's."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tp2d_mesh import devices

PHASES = ("setup", "train", "eval", "save")
Number = int | float | torch.Tensor


class Clock:
    """Wall-clock seconds by phase. A run is always in one phase; `lap` says which one has just ended.

    Args:
        device: what to wait for before the clock is read, so that work still queued there counts where it belongs.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds = dict.fromkeys(PHASES, 0.0)
        self._last = time.perf_counter()

    def carry_over(self, seconds: Mapping[str, float]) -> None:
        """Adds what earlier starts of the run took."""
        for phase, amount in seconds.items():
            self.seconds[phase] += amount

    def lap(self, phase: str) -> None:
        """Adds the time since the last call to `phase`."""
        devices.synchronize(self._device)
        now = time.perf_counter()
        self.seconds[phase] += now - self._last
        self._last = now


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What turns a token rate into a share of the peak.

    Args:
        device: this rank's device.
        flops_per_token: floating-point operations of forward and backward for one token, None where not known.
        peak_flops: of all ranks together per second, None where not known.
    """

    device: torch.device
    flops_per_token: float | None = None
    peak_flops: float | None = None


class Meter:
    """Speeds over the steps between two readings; evaluating and saving do not count.

    Args:
        clock: the run's clock.
        hardware: what the run computes on.
        step: completed steps, and `tokens` the predicted tokens, where the measuring starts.
    """

    def __init__(self, clock: Clock, hardware: Hardware, *, step: int, tokens: Number) -> None:
        self._clock = clock
        self._hardware = hardware
        self._window = self._first = (step, tokens, clock.seconds["train"])

    def warmed_up(self, *, step: int, tokens: Number) -> None:
        """Starts `overall` here: called after the first step, which compiles and allocates once."""
        self._clock.lap("train")
        self._first = (step, tokens, self._clock.seconds["train"])

    def read(self, *, step: int, tokens: Number) -> dict[str, Any]:
        """The speeds since the last log line; the first line's include what only the first step does."""
        self._clock.lap("train")
        speed = self._speed(self._window, step=step, tokens=tokens)
        self._window = (step, tokens, self._clock.seconds["train"])
        memory = devices.peak_memory(self._hardware.device)
        return speed if memory is None else {**speed, "memory_bytes": memory}

    def overall(self, *, step: int, tokens: Number) -> dict[str, Any]:
        """The same over all steps of this start but the first."""
        return self._speed(self._first, step=step, tokens=tokens)

    def _speed(self, since: tuple[int, Number, float], *, step: int, tokens: Number) -> dict[str, Any]:
        steps, counted = step - since[0], float(tokens) - float(since[1])
        seconds = self._clock.seconds["train"] - since[2]
        if not steps:
            return {}
        rate = counted / seconds
        speed = {"tokens_per_second": rate, "step_seconds": seconds / steps}
        flops, peak = self._hardware.flops_per_token, self._hardware.peak_flops
        return speed if flops is None or peak is None else {**speed, "mfu": rate * flops / peak}
