"""What every command does with an error: one line on stderr without a traceback, and an exit code.

0: done. 1: a worker failed. 2: the options cannot work. 128 + n: stopped by signal n.
"""

import signal
import sys
from collections.abc import Callable

from tp2d_train.outcome import RunFailed, RunStopped


def exit_code(command: Callable[[], None]) -> int:
    """Runs a command and returns its exit code. Errors that are no user's mistake and no failed run pass through."""
    try:
        command()
    except ValueError as error:
        return _complain(error, code=2)
    except RunFailed as error:
        return _complain(error, code=1)
    except RunStopped as stop:
        print(stop)
        return 128 + stop.signal
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def _complain(error: Exception, *, code: int) -> int:
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return code
