"""What is said while work takes long."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str], None]
"""Takes one line of text; may be called from another thread than the one that works."""
_SILENT_SECONDS, _PROGRESS_SECONDS = 2.0, 5.0


class Clock:
    """Says how long it has been running, and when the next progress message is due."""

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()

    def seconds(self) -> float:
        return time.monotonic() - self._start

    def due(self) -> bool:
        """Whether some seconds have passed since this was last true."""
        if time.monotonic() - self._last < _PROGRESS_SECONDS:
            return False
        self._last = time.monotonic()
        return True


@contextmanager
def told(progress: Progress, what: str) -> Iterator[None]:
    """Tells `progress` that `what` is being done if the block takes more than 2 seconds, then every 5 seconds."""
    clock, ended = Clock(), threading.Event()

    def tell() -> None:
        wait = _SILENT_SECONDS
        while not ended.wait(wait):
            progress(f"{what}, {clock.seconds():.0f} s")
            wait = _PROGRESS_SECONDS

    thread = threading.Thread(target=tell, daemon=True, name="tp2d-data-progress")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
