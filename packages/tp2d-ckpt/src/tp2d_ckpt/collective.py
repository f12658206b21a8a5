"""Run a function on every rank; an error on one rank becomes the same error on all of them.

Without this, a rank whose disk is full raises, and the other ranks wait for it until the group's time-out.
"""

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Self, TypeVar

import torch.distributed as dist

T = TypeVar("T")


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or read; the message names the rank that failed and the cause."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An error of one rank, as text: the class of an exception may not unpickle on another rank.

    Args:
        message: the error's message; for an error that is not a ValueError also its class.
        traceback: the formatted traceback.
        is_value_error: whether the error is a ValueError, that is, a mistake of the user's.
    """

    message: str
    traceback: str
    is_value_error: bool

    @classmethod
    def of(cls, error: BaseException) -> Self:
        """`error` as a Failure."""
        is_value_error = isinstance(error, ValueError)
        message = str(error) if is_value_error else f"{type(error).__name__}: {error}"
        return cls(
            message=message,
            traceback="".join(traceback.format_exception(error)),
            is_value_error=is_value_error,
        )


def together(doing: str, fn: Callable[[], T], *, group: dist.ProcessGroup) -> list[T]:
    """Run `fn` on every rank of `group` and return the results of all ranks, in rank order; a collective.

    Args:
        doing: what is being done, for the error message: "saving step 120".
        fn: runs on every rank and contains no collective; its result is picklable and small.
        group: a group with a CPU backend, or NCCL with the device set.

    Raises:
        ValueError: on every rank, where each rank that failed raised a ValueError; with the message of the first.
        CheckpointError: on every rank, where a rank failed in another way.
    """
    outcome: T | Failure
    try:
        outcome = fn()
    except Exception as error:
        outcome = Failure.of(error)
    outcomes: list[T | Failure] = [outcome] * dist.get_world_size(group)
    dist.all_gather_object(outcomes, outcome, group=group)
    raise_failures(doing, {rank: found for rank, found in enumerate(outcomes) if isinstance(found, Failure)})
    return [result for result in outcomes if not isinstance(result, Failure)]


def agree(doing: str, fn: Callable[[], T], *, group: dist.ProcessGroup) -> T:
    """Run `fn` on every rank of `group` and return this rank's own result; a collective. Raises as `together`."""
    own: list[T] = []
    together(doing, lambda: own.append(fn()), group=group)
    return own[0]


def on_rank0(doing: str, fn: Callable[[], T], *, group: dist.ProcessGroup) -> T:
    """Run `fn` on rank 0 of `group` and return its result on every rank; a collective. Raises as `together`."""
    results = together(doing, lambda: [fn()] if dist.get_rank(group) == 0 else [], group=group)
    return results[0][0]


def raise_failures(doing: str, failures: Mapping[int, Failure]) -> None:
    """Raise the first of `failures`, given by rank, as the errors that `together` names; return where there is none."""
    if not failures:
        return
    rank = min(failures, key=lambda r: (failures[r].is_value_error, r))
    first = failures[rank]
    more = f" (and on {len(failures) - 1} more)" if len(failures) > 1 else ""
    error: ValueError | CheckpointError
    if first.is_value_error:
        error = ValueError(first.message)
    else:
        error = CheckpointError(f"{doing} failed on rank {rank}{more}: {first.message}")
    error.add_note(f"On rank {rank}:\n{first.traceback}")
    raise error
