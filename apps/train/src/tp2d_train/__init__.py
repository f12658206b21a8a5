"""Train a causal language model with tensor x data parallelism under Ray Train."""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from tp2d_train.config import TrainConfig
from tp2d_train.outcome import Result

if TYPE_CHECKING:
    from tp2d_train.launch.launch import train
    from tp2d_train.training.worker import train_func

__version__ = version("tp2d-train")

__all__ = ["Result", "TrainConfig", "__version__", "train", "train_func"]

_LAZY = {"train": "tp2d_train.launch.launch", "train_func": "tp2d_train.training.worker"}


def __getattr__(name: str) -> Any:
    """`train` and `train_func` are imported when they are first used: torch takes seconds, a wrong option does not."""
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
