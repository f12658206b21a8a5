"""Tokenising in other processes, for corpora that take a while.

The `tokenizers` library uses all cores by threads, but its results become Python objects one by one, under the
interpreter's lock. With more than a few cores that is the limit, and it slows a training loop in the same interpreter.
A process here tokenises on one core and gives back plain arrays; its memory is not taken from a rank's.
"""

import os
import subprocess
import sys
from array import array
from collections.abc import Sequence
from multiprocessing.connection import Connection, Pipe
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MOST = 32
"""Most processes to start: one reader keeps no more of them busy."""


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Encoders:
    """Processes with a copy of a tokenizer each; calls from several threads run in several processes.

    Args:
        tokenizer: a fast one.
        processes: how many; they start at once and are ready after some tenths of a second.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", *, processes: int) -> None:
        from tp2d_data.tokens.tokenizer import plain_backend

        backend = plain_backend(tokenizer)
        given = (backend.to_str(), backend.encode_special_tokens)
        self._all = [_Process(given) for _ in range(processes)]
        self._idle: SimpleQueue[_Process] = SimpleQueue()
        for process in self._all:
            self._idle.put(process)

    def encode(
        self, texts: Sequence[str], *, add_special_tokens: bool = True, eos: int | None = None
    ) -> list[NDArray[np.uint32]]:
        """As `tokenizer.encode`; waits for an idle process.

        Raises:
            RuntimeError: the process has ended, for example because it ran out of memory.
        """
        process = self._idle.get()
        try:
            return process.encode((list(texts), add_special_tokens, eos))
        finally:
            self._idle.put(process)

    def close(self) -> None:
        """Ends the processes."""
        for process in self._all:
            process.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Process:
    def __init__(self, given: tuple[str, bool]) -> None:
        self._connection, theirs = Pipe()
        # A new program, no fork and no spawn: neither this program's threads nor its main module are copied.
        command = [sys.executable, "-c", f"from tp2d_data.tokens.encoders import serve; serve({theirs.fileno()})"]
        path = os.pathsep.join(filter(None, sys.path))
        environment = {**os.environ, "PYTHONPATH": path, "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=environment)
        theirs.close()
        self._given: Any = given

    def encode(self, task: tuple[list[str], bool, int | None]) -> list[NDArray[np.uint32]]:
        try:
            if self._given is not None:
                self._connection.send(self._given)
                self._given = None
            self._connection.send(task)
            ids = np.frombuffer(self._connection.recv_bytes(), np.uint32)
            ends = np.frombuffer(self._connection.recv_bytes(), np.int64)
        except (EOFError, OSError) as error:
            code = self._process.wait()
            raise RuntimeError(
                f"a process that tokenises ended with exit code {code} (-9: killed, such as for want of memory)"
            ) from error
        begins = [0, *ends[:-1].tolist()]
        return [ids[begin:end] for begin, end in zip(begins, ends.tolist(), strict=False)]

    def close(self) -> None:
        self._connection.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:  # it works on a text whose result nobody waits for
            self._process.kill()
            self._process.wait()


def serve(descriptor: int) -> None:
    """The process's loop, until the other end of the pipe is closed."""
    from tokenizers import Tokenizer

    from tp2d_data.tokens.tokenizer import encode_backend

    connection = Connection(descriptor)
    try:
        text, special = connection.recv()
        backend = Tokenizer.from_str(text)
        backend.encode_special_tokens = special
        while True:
            texts, add_special_tokens, eos = connection.recv()
            rows = encode_backend(backend, texts, add_special_tokens=add_special_tokens, eos=eos)
            flat = array("I")
            for row in rows:
                flat.fromlist(row)
            connection.send_bytes(flat.tobytes())
            connection.send_bytes(np.cumsum([len(row) for row in rows], dtype=np.int64).tobytes())
    except (EOFError, BrokenPipeError):
        return
