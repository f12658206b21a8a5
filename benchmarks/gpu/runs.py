"""Runs each contender in a process of its own, one after the other: none finds another's memory, caches or errors."""

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

_PRELOADED = ["torch", "torch._dynamo", "torch.profiler", "transformers.models.llama.modeling_llama", "tp2d_fsdp2"]
_LEAVING_SECONDS = 30


def starter(*, gpu: bool) -> Any:
    """What starts processes: from nothing for a GPU, since CUDA does not survive a fork; else from a server that has
    imported the libraries.
    """
    context = multiprocessing.get_context("spawn" if gpu else "forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def in_process(work: Callable[..., Any], *args: Any, gpu: bool, timeout: float) -> Any:
    """The result of `work(*args)`, run in a new process, or what went wrong, as a string.

    Args:
        work: a function at the top level of a module.
        args: pickled.
        gpu: see `starter`.
        timeout: seconds.
    """
    context = starter(gpu=gpu)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, work, args))
    process.start()
    theirs.close()
    answered = ours.poll(timeout)
    try:
        result = ours.recv() if answered else f"not finished after {timeout:.0f} s"
    except EOFError:
        result = None
    process.join(_LEAVING_SECONDS if answered else 0)
    if process.is_alive():
        process.kill()
        process.join()
    return f"its process ended with exit code {process.exitcode}" if result is None else result


def _answer(pipe: Connection, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        pipe.send(work(*args))
    except Exception as error:  # one contender of many: whatever keeps it from running is its row in the table
        traceback.print_exc()
        pipe.send(f"{type(error).__name__}: {error}".splitlines()[0][:200])
