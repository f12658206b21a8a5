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


@dataclass(frozen=True, kw_only=True)
class _Mark:
    """Where a run was when its training time was `seconds`; its counts may still be on the device."""

    step: int
    tokens: Number
    positions: Number
    seconds: float


class Meter:
    """Speeds over the steps between two readings; evaluating and saving do not count.

    `tokens_per_second` is of all positions, labelled or not: what others publish, and what `mfu` follows from.
    `label_tokens_per_second` is of the tokens that the loss counts.

    Args:
        clock: the run's clock.
        hardware: what the run computes on.
        step: completed steps where the measuring starts.
        tokens: those that the loss has counted until there.
        positions: those that have been computed until there, each once per dp rank.
    """

    def __init__(self, clock: Clock, hardware: Hardware, *, step: int, tokens: Number, positions: Number) -> None:
        self._clock = clock
        self._hardware = hardware
        self._window = self._first = self._mark(step=step, tokens=tokens, positions=positions)

    def warmed_up(self, *, step: int, tokens: Number, positions: Number) -> None:
        """Starts `overall` here: called after the first step, which compiles and allocates once."""
        self._clock.lap("train")
        self._first = self._mark(step=step, tokens=tokens, positions=positions)

    def read(self, *, step: int, tokens: Number, positions: Number) -> dict[str, Any]:
        """The speeds since the last log line; the first line's include what only the first step does."""
        self._clock.lap("train")
        now = self._mark(step=step, tokens=tokens, positions=positions)
        speed, self._window = self._speed(self._window, now), now
        memory = devices.peak_memory(self._hardware.device)
        return speed if memory is None else {**speed, "memory_bytes": memory}

    def overall(self, *, step: int, tokens: Number, positions: Number) -> dict[str, Any]:
        """The same over all steps of this start but the first."""
        return self._speed(self._first, self._mark(step=step, tokens=tokens, positions=positions))

    def _mark(self, *, step: int, tokens: Number, positions: Number) -> _Mark:
        return _Mark(step=step, tokens=tokens, positions=positions, seconds=self._clock.seconds["train"])

    def _speed(self, since: _Mark, now: _Mark) -> dict[str, Any]:
        steps, seconds = now.step - since.step, now.seconds - since.seconds
        if not steps:
            return {}
        rate = (float(now.positions) - float(since.positions)) / seconds
        labels = (float(now.tokens) - float(since.tokens)) / seconds
        speed = {"tokens_per_second": rate, "label_tokens_per_second": labels, "step_seconds": seconds / steps}
        flops, peak = self._hardware.flops_per_token, self._hardware.peak_flops
        return speed if flops is None or peak is None else {**speed, "mfu": rate * flops / peak}
