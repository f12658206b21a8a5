"""A matplotlib figure as SVG within a page: it takes the page's colours and font, and is read out by its title.

A figure is drawn in colours that stand for names of the page's style sheet (`INK` for `var(--ink)`), which are put in
their place afterwards. So one picture serves a dark page and a light one.
"""

import io
import re
from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup

INK, MUTED, LINE, BAD, GOOD = "#0b0b01", "#0b0b02", "#0b0b03", "#0b0b04", "#0b0b05"
RUN_COLOURS = 8  # in the style sheet
_NAMES = {INK: "ink", MUTED: "muted", LINE: "line", BAD: "bad", GOOD: "good"}
_SVG = "http://www.w3.org/2000/svg"
_LINK = "{http://www.w3.org/1999/xlink}href"
_STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "tp2d"}
FONT = 10.0  # points of a figure as wide as a phone


def run_colour(number: int) -> str:
    """What stands for the colour of the run `number`, from 0."""
    return f"#0b0b{0x10 + number % RUN_COLOURS:02x}"


def new_figure(*, width: float, height: float) -> tuple[Any, Any]:
    """A figure with one plot in the page's style.

    Args:
        width, height: in points; its text has `FONT`.

    Returns:
        matplotlib's figure and axes.
    """
    # Made without pyplot: no global state, no window system.
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width / 72, height / 72), layout="constrained", facecolor="none")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot(facecolor="none")
    axes.tick_params(colors=MUTED, labelsize=FONT, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    return figure, axes


def inline_svg(figure: Any, *, name: str, title: str, description: str) -> Markup:
    """The figure as an `svg` element.

    Args:
        figure: as `new_figure` makes it.
        name: of letters, digits and `-`, unlike that of any other picture of the page.
        title, description: for those who do not see it.
    """
    import matplotlib

    box = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(box, format="svg", metadata={"Date": None})
    root = ElementTree.fromstring(box.getvalue())
    for metadata in root.findall(f"{{{_SVG}}}metadata"):
        root.remove(metadata)
    _own_names(root, name)
    _size_by_page(root)
    _describe(root, name, title, description)
    ElementTree.register_namespace("", _SVG)
    return Markup(_coloured(ElementTree.tostring(root, encoding="unicode")))


def _own_names(root: ElementTree.Element, name: str) -> None:
    """Makes every id of the picture its own: the page has several pictures."""
    for element in root.iter():
        for key, value in list(element.attrib.items()):
            if key == "id":
                element.set(key, f"{name}-{value}")
            elif key == _LINK:
                del element.attrib[key]
                element.set("href", value.replace("#", f"#{name}-"))
            elif "url(#" in value:
                element.set(key, value.replace("url(#", f"url(#{name}-"))


def _size_by_page(root: ElementTree.Element) -> None:
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)


def _describe(root: ElementTree.Element, name: str, title: str, description: str) -> None:
    for at, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(f"{{{_SVG}}}{tag}", {"id": f"{name}-{tag}"})
        element.text = text
        root.insert(at, element)
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title {name}-desc")


def _coloured(text: str) -> str:
    return re.sub(r"#0b0b[0-9a-f]{2}", lambda found: f"var(--{_name_of(found[0])})", text)


def _name_of(colour: str) -> str:
    return _NAMES.get(colour) or f"run-{int(colour[-2:], 16) - 0x10}"
