"""The page: everything that is known of the runs, put into the template. It needs nothing but itself."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

from jinja2 import Environment, PackageLoader, StrictUndefined

from tp2d_train.page import figures
from tp2d_train.page.curves import draw_curves
from tp2d_train.page.facts import Facts
from tp2d_train.page.figures import Share
from tp2d_train.page.moments import Moments, moments_of
from tp2d_train.page.placement import Placement, placement_of
from tp2d_train.page.settings import settings_of
from tp2d_train.page.svg import RUN_COLOURS
from tp2d_train.page.timeline import Timeline, draw_timeline

STATES = {
    "running": "It is running now: this page shows it as it was when the page was made.",
    "stopped": "It has not reached its end. It was stopped or killed, and can be resumed.",
    "failed": "It has failed, and has not been started again since.",
    "no checkpoint": "It has ended without a checkpoint, so nothing can be resumed.",
    "damaged": "Its files are damaged: what can be read is shown.",
}
"""What the page says of a state, where the run is not finished."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """What the page shows of each run by itself.

    Args:
        facts: the run.
        colour: the number of its colour.
        note: on its state; empty for a finished run.
        placement: its ranks by node.
        timeline: its steps over time.
        moments: what happened.
        shares: its time by phase.
        total: of that time, as text.
    """

    facts: Facts
    colour: int
    note: str
    placement: Placement | None
    timeline: Timeline | None
    moments: Moments
    shares: Sequence[Share]
    total: str


def render(runs: Sequence[Facts]) -> str:
    """The page of one or more runs, as HTML.

    Names, messages and paths come from files that anyone may have written, and are escaped.
    """
    longest = max(map(figures.total_seconds, runs))
    environment = Environment(
        loader=PackageLoader("tp2d_train.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja").render(
        title=" and ".join(run.name for run in runs) if len(runs) < 4 else f"{len(runs)} runs",
        sections=[_section(run, number=number, longest=longest) for number, run in enumerate(runs)],
        results=figures.results(runs),
        identities=figures.identities(runs),
        documents=figures.documents(runs),
        versions=figures.versions(runs),
        curves=draw_curves(runs),
        settings=settings_of(runs),
        size=figures.size,
        made=time.strftime("%Y-%m-%d %H:%M"),
        program=f"tp2d {version('tp2d-train')}",
    )


def _section(run: Facts, *, number: int, longest: float) -> Section:
    return Section(
        facts=run,
        colour=number % RUN_COLOURS,
        note=STATES.get(run.state, ""),
        placement=placement_of(run),
        timeline=draw_timeline(run, number=number),
        moments=moments_of(run),
        shares=figures.shares(run, longest=longest),
        total=figures.clock(figures.total_seconds(run)),
    )
