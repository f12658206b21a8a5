"""What one check of `tp2d doctor` has found."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

_NAME_WIDTH = 15


class Level(StrEnum):
    """How bad it is: a problem stops runs, a warning may."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report.

    Args:
        level: how bad it is.
        check: what was looked at, a word or two.
        text: what was found, with its numbers.
        mend: what to do, where something is wrong.
    """

    level: Level = Level.OK
    check: str
    text: str
    mend: str = ""

    def __str__(self) -> str:
        text = " ".join(f"{self.text}; {self.mend}".split()) if self.mend else self.text
        return f"{self.level:8} {self.check:{_NAME_WIDTH}} {text}"


Check = Callable[[], Iterator[Finding]]
"""A check: it gives its findings one by one."""


def findings_of(check: Check, *, name: str) -> Iterator[Finding]:
    """The findings of a check; an error that it does not foresee is one of them, and the other checks go on.

    Args:
        check: what looks.
        name: what it looks at, for its error.
    """
    try:
        yield from check()
    except Exception as error:  # whatever is broken on this machine is what is asked for
        yield Finding(
            level=Level.PROBLEM,
            check=name,
            text=f"the check itself failed: {type(error).__name__}: {error}",
            mend="mend what it names, and run `tp2d doctor` again",
        )
