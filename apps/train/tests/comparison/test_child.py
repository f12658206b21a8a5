"""A run as a process of its own: how it ended is known, and signals reach it."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tp2d_train.comparison.child import train_in_child


def test_the_reason_of_a_failure_is_its_error_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    ending = train_in_child({"tp_size": 3}, file=tmp_path / "next.yaml")
    assert (ending.code, ending.signal) == (2, None)
    assert ending.message.startswith("tp_size 3 x dp_size 1 = 3, but num_workers is 4")
    assert f"error: {ending.message}" in capfd.readouterr().err, "it is shown as it comes, too"
    assert not (tmp_path / "next.yaml").exists()


def test_a_signal_stops_the_child_and_is_reported(tmp_path: Path) -> None:
    """While it imports it has saved nothing, and simply ends; this process stays, with its own handler again."""
    before = signal.getsignal(signal.SIGTERM)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    settings = {"storage_path": str(tmp_path), "name": "a", "launcher": "local"}
    ending = train_in_child(settings, file=tmp_path / "next.yaml")
    assert ending.signal == signal.SIGTERM and ending.code != 0
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_child_is_asked_once_to_leave_when_its_parent_is_killed(tmp_path: Path) -> None:
    """Else it would go on unseen. A second signal would end it before it has saved. The parent has threads."""
    program = (
        "import os, runpy, signal, time\n"
        "from tp2d_train.comparison import child\n"
        "signal.signal(signal.SIGTERM, lambda *given: print('asked', flush=True))\n"
        "runpy.run_module = lambda *given, **named: (print(os.getpid(), flush=True), time.sleep(1.0))\n"
        "child.main()"
    )
    parent = (
        "import subprocess, sys, threading, time\n"
        "threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdin=subprocess.PIPE)\n"
        "time.sleep(60)"
    )
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen([sys.executable, "-c", parent, program], stdout=said)
    wait_for(lambda: (tmp_path / "said").read_text().endswith("\n"))
    child = Path("/proc", (tmp_path / "said").read_text().strip())
    process.kill()
    process.wait()
    wait_for(lambda: not child.exists())
    assert (tmp_path / "said").read_text().splitlines()[1:] == ["asked"]


def wait_for(ready: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.02)
