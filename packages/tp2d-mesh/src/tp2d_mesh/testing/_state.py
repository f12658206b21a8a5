"""What a function may change in the process that runs it, and how a rank that lives on puts it back."""

import gc
import logging
import os
import random
import resource
import signal
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

Read = Callable[[], Any]
Write = Callable[[Any], object]


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a rank takes over from the caller at every call.

    Args:
        environment: the caller's variables.
        folder: its working directory.
        path: its `sys.path`.
        argv: its `sys.argv`.
    """

    environment: Mapping[str, str]
    folder: str
    path: tuple[str, ...]
    argv: tuple[str, ...]

    @classmethod
    def of_now(cls) -> "Surroundings":
        """This process's."""
        return cls(environment=dict(os.environ), folder=str(Path.cwd()), path=tuple(sys.path), argv=tuple(sys.argv))

    def take(self) -> None:
        """Make this process's the same."""
        os.environ.clear()
        os.environ.update(self.environment)
        os.chdir(self.folder)
        sys.path[:] = self.path
        sys.argv[:] = self.argv
        torch.set_num_threads(1)


class Snapshot:
    """Settings of this process, as they were when this object was made."""

    def __init__(self) -> None:
        self._values = [(write, read()) for read, write in _SETTINGS]

    def put_back(self) -> None:
        """Give every setting the value it had, and draw Python's random state anew as a forked process does.

        Raises:
            ValueError, OSError: a limit was lowered for good.
        """
        for write, value in self._values:
            write(value)
        random.seed()


def _set_deterministic(value: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(value[0], warn_only=value[1])


def _set_filters(value: list[Any]) -> None:
    warnings.filters[:] = value  # type: ignore[index]
    warnings._filters_mutated()  # type: ignore[attr-defined]  # as `catch_warnings` does: what was shown is shown again


def _signals() -> dict[signal.Signals, Any]:
    return {number: signal.getsignal(number) for number in signal.Signals}


def _set_signals(handlers: dict[signal.Signals, Any]) -> None:
    for number, handler in handlers.items():
        if handler is not None and signal.getsignal(number) is not handler:  # None: not installed by Python
            signal.signal(number, handler)


def _limits() -> dict[int, tuple[int, int]]:
    names = [name for name in dir(resource) if name.startswith("RLIMIT_")]
    return {number: resource.getrlimit(number) for number in {getattr(resource, name) for name in names}}


def _set_limits(limits: dict[int, tuple[int, int]]) -> None:
    for number, limit in limits.items():
        if resource.getrlimit(number) != limit:
            resource.setrlimit(number, limit)


def _streams() -> tuple[Any, ...]:
    return sys.stdin, sys.stdout, sys.stderr


def _set_streams(streams: tuple[Any, ...]) -> None:
    sys.stdin, sys.stdout, sys.stderr = streams


def _root_logger() -> tuple[int, list[logging.Handler], int]:
    return logging.root.level, logging.root.handlers[:], logging.root.manager.disable


def _set_root_logger(value: tuple[int, list[logging.Handler], int]) -> None:
    logging.root.setLevel(value[0])
    logging.root.handlers[:] = value[1]
    logging.disable(value[2])


_SETTINGS: tuple[tuple[Read, Write], ...] = (
    (torch.get_default_dtype, torch.set_default_dtype),
    (lambda: None, torch.set_default_device),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.is_anomaly_enabled, torch.set_anomaly_enabled),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        _set_deterministic,
    ),
    (torch.get_rng_state, torch.set_rng_state),
    (np.random.get_state, np.random.set_state),
    (lambda: warnings.filters[:], _set_filters),
    (_signals, _set_signals),
    (_limits, _set_limits),
    (_streams, _set_streams),
    (_root_logger, _set_root_logger),
    (gc.isenabled, lambda enabled: gc.enable() if enabled else gc.disable()),
)
