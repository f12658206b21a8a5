"""One run of a comparison as a process of its own, and that process's first lines.

    python -m tp2d_train.comparison.child train --config FILE

is `python -m tp2d_train train --config FILE`, which asks itself to save and leave when its standard input ends. The
parent holds the other end of that pipe, so it ends with the parent, however that ends: a run without its comparison
would go on unseen, and be in the way of the next call.
"""

import contextlib
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from tp2d_train.runs.folder import replace_file

STOPPING = (signal.SIGINT, signal.SIGTERM)
ERROR = "error: "  # how every command begins its one line
STDIN = 0
POLL_SECONDS = 0.2


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How a child ended.

    Args:
        code: its exit code; negative: the signal that killed it.
        message: the last line of its errors on stderr, else its last line there, or what its exit code means.
        signal: the one that asked it to stop; None: nobody did.
    """

    code: int
    message: str
    signal: int | None


def train_in_child(settings: Mapping[str, Any], *, file: Path) -> Ending:
    """Runs `tp2d train` with these settings to its end. Its output is this process's.

    SIGINT and SIGTERM are passed on to it, once each: the first asks it to save and leave, as in `tp2d train`.

    Args:
        settings: of `TrainConfig` by name.
        file: the YAML file that is written for it.
    """
    replace_file(file, yaml.safe_dump(dict(settings), sort_keys=False, allow_unicode=True).encode())
    command = [sys.executable, "-m", "tp2d_train.comparison.child", "train", "--config", str(file)]
    # A group of its own: a terminal's Ctrl-C would reach it beside the one that is passed on, and two kill at once.
    # Errors go to a file: after a kill of this process a pipe would break, and the child with it before it saves.
    with (
        tempfile.TemporaryFile() as errors,
        _Relay.installed() as relay,
        _shown(errors.fileno()) as last,
        subprocess.Popen(command, stdin=subprocess.PIPE, stderr=errors, process_group=0) as process,
    ):
        relay.attach(process)
        code = process.wait()
    file.unlink()
    return Ending(code=code, message=_message(code, last), signal=_asked(code, relay.received))


def main() -> None:
    """The child: see the module."""
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    runpy.run_module("tp2d_train", run_name="__main__", alter_sys=True)


def _leave_with_parent() -> None:
    # Not the kernel's signal of a parent's death: of a parent with threads it may come twice, and two kill at once.
    while os.read(STDIN, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


class _Relay:
    """Passes signals on to a process; one that came before there was a process is passed on then."""

    def __init__(self) -> None:
        self.received: list[int] = []
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    @contextlib.contextmanager
    def installed(cls) -> Iterator["_Relay"]:
        relay = cls()
        if threading.current_thread() is not threading.main_thread():
            yield relay  # Python gives signals to the main thread only
            return
        before = {number: signal.signal(number, relay._handle) for number in STOPPING}
        try:
            yield relay
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def attach(self, process: "subprocess.Popen[bytes]") -> None:
        waiting = self.received[:1]
        self._process = process
        for number in waiting:
            process.send_signal(number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received.append(number)
        if self._process is not None:
            self._process.send_signal(number)


@contextlib.contextmanager
def _shown(file: int) -> Iterator[dict[str, str]]:
    """Within the block what is written to a file is shown on stderr.

    Yields:
        `line`: the last line, `error`: the last one that says an error, since libraries write after it.
    """
    last: dict[str, str] = {}
    ended = threading.Event()
    thread = threading.Thread(target=_follow, args=(file, last, ended), daemon=True)
    thread.start()
    try:
        yield last
    finally:
        ended.set()
        thread.join()


def _follow(file: int, last: dict[str, str], ended: threading.Event) -> None:
    at, rest, over = 0, b"", False
    while not over:
        over = ended.wait(POLL_SECONDS)  # what came until then is still read
        found = os.pread(file, os.fstat(file).st_size - at, at)
        at += len(found)
        *lines, rest = (rest + found).split(b"\n")
        for line in [*lines, rest] if over else lines:
            if text := line.decode(errors="replace").strip():
                print(text, file=sys.stderr, flush=True)
                last["error" if text.startswith(ERROR) else "line"] = text.removeprefix(ERROR)


def _message(code: int, last: Mapping[str, str]) -> str:
    if code < 0:
        return f"the run's process was killed by signal {-code}"
    return last.get("error") or last.get("line") or f"the run's process ended with exit code {code}"


def _asked(code: int, received: list[int]) -> int | None:
    """The signal that stopped the run; somebody may have sent it to the child alone."""
    if received:
        return received[0]
    return next((number for number in STOPPING if code in (128 + number, -number)), None)


if __name__ == "__main__":
    main()
