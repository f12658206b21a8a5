"""Other processes that hold a run."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tp2d_train.runs.folder import RunFolder

HOLD = """
import sys
from pathlib import Path
from tp2d_train.runs import hold
from tp2d_train.runs.folder import RunFolder
hold.BEAT_SECONDS = 0.1
if sys.argv[2]: hold.BOOT = Path(sys.argv[2])
with hold.held(RunFolder(Path(sys.argv[1]))):
    print('held', flush=True)
    sys.stdin.readline()
"""


@contextmanager
def other_process(folder: RunFolder, *, boot: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the run until it is told to go, as one of another machine where `boot` has its mark."""
    line = [sys.executable, "-c", HOLD, str(folder.path), str(boot or "")]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()
