"""Python's loggers of our packages: one level for all of them, in the driver and in the workers."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from tp2d_train.report.progress import EventLog
from tp2d_train.runs.folder import RunFolder

PACKAGES = ("tp2d_data", "tp2d_mesh", "tp2d_fsdp2", "tp2d_autotp", "tp2d_ckpt", "tp2d_train")


def set_log_level(level: str) -> None:
    """Lets through what is at least as important as `level`, a choice of `TrainConfig.log_level`."""
    for name in PACKAGES:
        logging.getLogger(name).setLevel(level.upper())


@contextmanager
def logged_as_events(folder: RunFolder, *, rank: int) -> Iterator[None]:
    """Within the block what a worker logs is in the run's events, so that the driver's view shows it under Ray too.

    Of all ranks but 0 warnings alone are: most of what they do is the same.

    Args:
        folder: the run's folder; it exists.
        rank: this worker's.
    """
    handler = _EventHandler(folder, level=logging.WARNING if rank else logging.NOTSET)
    loggers = [logging.getLogger(name) for name in PACKAGES]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)


class _EventHandler(logging.Handler):
    def __init__(self, folder: RunFolder, *, level: int) -> None:
        super().__init__(level)
        self._events = EventLog(folder)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._events.write("warning" if record.levelno >= logging.WARNING else "data", message=record.getMessage())
        except Exception:
            self.handleError(record)  # as every handler of the standard library does: no log line ends a run
