"""A comparison from its settings to its rows: check every run, train one after another, read what they gave.

What is done is not done again: a run that has finished is read, one that was stopped goes on where it last saved. A run
that fails is a row with its reason.
"""

import dataclasses
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from tp2d_mesh.cost import Estimate

from tp2d_train.comparison.child import train_in_child
from tp2d_train.comparison.estimates import planned
from tp2d_train.comparison.folder import ComparisonFolder
from tp2d_train.comparison.rows import Losses, Row, empty_row, measured_row, read_losses, with_plan
from tp2d_train.comparison.settings import Cell, Settings
from tp2d_train.outcome import RunStopped
from tp2d_train.runs.folder import RunFolder
from tp2d_train.runs.hold import held
from tp2d_train.runs.run import find_run, read_summary
from tp2d_train.setup.check import absolute_paths, check

LEAVING_SECONDS = 120.0
"""How long a run that another process still trains is waited for: that of a comparison which was killed is leaving."""


@dataclasses.dataclass(kw_only=True)
class Comparison:
    """A comparison on its way.

    Args:
        folder: where its files are.
        settings: what it computes.
        say: takes what a user should read.
    """

    folder: ComparisonFolder
    settings: Settings
    say: Callable[[str], None]

    def __post_init__(self) -> None:
        self.cells = tuple(self.settings.cells())
        self.states = dict.fromkeys((cell.name for cell in self.cells), ("waiting", ""))
        self.plans: dict[str, Estimate | str] = {}

    def run(self) -> tuple[Row, ...]:
        """Everything; returns a row for every run.

        Raises:
            ValueError: no run can work, or another process is at this comparison.
            RunStopped: a signal asked to stop; what is done is kept.
        """
        self.check()
        with held(RunFolder(self.folder.path)), self._stoppable():
            self._write()
            waiting = [cell for cell in self.cells if self.states[cell.name][0] == "waiting"]
            for number, cell in enumerate(waiting, start=1):
                self.say(f"[{number} of {len(waiting)}] {cell.name}")
                self.states[cell.name] = self._train(cell)
                self._write()
        return self.rows()

    def check(self) -> None:
        """Finds out which runs cannot work, and what the others are planned to need; starts nothing.

        Raises:
            ValueError: none can work; nothing is left behind.
        """
        self.say(f"checking {len(self.cells)} runs")
        for cell in self.cells:
            try:
                run = check(cell.config(str(self.folder.path)), progress=lambda text: None)
            except ValueError as error:
                self.states[cell.name] = ("refused", " ".join(str(error).split()))
            else:
                self.plans[cell.name] = planned(run.config)
        reasons = {reason for state, reason in self.states.values() if state == "refused"}
        if not self.plans:
            with suppress(OSError):
                self.folder.path.rmdir()  # the check has made it; what is in it stays
            raise ValueError(f"none of the {len(self.cells)} runs can work: {'; '.join(sorted(reasons))}")

    def rows(self) -> tuple[Row, ...]:
        """The rows as things are; losses are compared to those of the first run that has finished."""
        reference: Losses | None = None
        rows = []
        for cell in self.cells:
            row = self._row(cell, reference)
            if row.state == "finished" and reference is None:
                reference = read_losses(self.folder.run(cell.name))
            rows.append(row)
        return tuple(rows)

    def environment(self) -> dict[str, str]:
        """What the finished runs say of what they computed on: device, precision."""
        summaries = [read_summary(self.folder.run(name)) for name in self._finished()]
        return {name: summaries[0][name] for name in ("device", "precision")} if summaries else {}

    def curves(self) -> dict[str, Losses]:
        """The losses of the runs that have finished, by name."""
        return {name: read_losses(self.folder.run(name)) for name in self._finished()}

    def _finished(self) -> list[str]:
        return [cell.name for cell in self.cells if self.states[cell.name][0] == "finished"]

    def _row(self, cell: Cell, reference: Losses | None) -> Row:
        state, reason = self.states[cell.name]
        if state == "finished":
            row = measured_row(cell, self.folder.run(cell.name), reference=reference)
        else:
            row = empty_row(cell, state=state, reason=reason or None)
        return with_plan(row, self.plans[cell.name]) if cell.name in self.plans else row

    def _write(self) -> None:
        self.folder.write(self.settings, self.rows(), environment=self.environment())

    def _train(self, cell: Cell) -> tuple[str, str]:
        """The state of a run after it was trained, and its reason."""
        wait_until_free(self.folder.run(cell.name), say=self.say)
        config = cell.config(str(self.folder.path))
        if find_run(absolute_paths(config)).finished:
            self.say("it has finished before")
            return "finished", ""
        place = {"name": cell.name, "storage_path": str(self.folder.path)}
        ending = train_in_child({**cell.settings, **place}, file=self.folder.next)
        if ending.signal is not None:
            raise self._stopped(ending.signal)
        if ending.code:
            self.say(f"{cell.name} failed, the others go on")
            return "failed", ending.message
        return "finished", ""

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        """Within the block Ctrl-C between two runs ends as during one."""
        try:
            yield
        except KeyboardInterrupt:
            raise self._stopped(signal.SIGINT) from None

    def _stopped(self, number: int) -> RunStopped:
        return RunStopped(f"the comparison has stopped, go on with: {self.folder.command()}", signal=number)


def wait_until_free(folder: RunFolder, *, say: Callable[[str], None], seconds: float = LEAVING_SECONDS) -> None:
    """Returns when no other process trains the run in `folder`, or after some time; whoever starts it is told then.

    Args:
        folder: the run's; where it does not exist nothing is made.
        say: takes what is waited for.
        seconds: the longest wait.
    """
    end = time.monotonic() + seconds
    said = False
    while folder.holder.exists() and time.monotonic() < end:
        try:
            with held(folder):
                return
        except ValueError as error:
            if not said:
                say(f"waiting: {error}")
            said = True
            time.sleep(0.2)


def failed(rows: Sequence[Row]) -> list[str]:
    """The names of the runs that failed."""
    return [row.name for row in rows if row.state == "failed"]
