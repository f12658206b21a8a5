"""A picture is well-formed, has names of its own, and takes its colours from the page."""

import re
from xml.etree import ElementTree

from tp2d_train.page.svg import BAD, INK, RUN_COLOURS, inline_svg, new_figure, run_colour


def picture(name: str = "p", *, title: str = "t", description: str = "d") -> str:
    figure, axes = new_figure(width=300, height=200)
    axes.plot([1, 2], [1, 3], "o-", color=run_colour(2))
    axes.set_xlabel("steps", color=INK)
    axes.axvline(1, color=BAD)
    return inline_svg(figure, name=name, title=title, description=description)


def test_it_is_well_formed_and_carries_no_link_to_elsewhere() -> None:
    root = ElementTree.fromstring(picture())
    assert root.get("viewBox") == "0 0 300 200" and root.get("width") is None
    links = [value for element in root.iter() for key, value in element.attrib.items() if "href" in key]
    urls = re.findall(r"url\(([^)]*)\)", picture())
    assert links and urls and all(link.startswith("#p-") for link in (*links, *urls))
    assert "metadata" not in picture()


def test_every_reference_has_its_element() -> None:
    text = picture("other")
    ids = set(re.findall(r' id="([^"]+)"', text))
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', text)) <= ids
    assert all(name.startswith("other-") for name in ids)


def test_its_colours_are_those_of_the_page() -> None:
    text = picture()
    assert {"var(--ink)", "var(--run-2)", "var(--bad)", "var(--line)"} <= set(re.findall(r"var\([^)]*\)", text))
    assert not re.findall(r"#0b0b", text)
    assert run_colour(RUN_COLOURS) == run_colour(0)


def test_it_is_read_out_by_its_title_and_names_are_no_markup() -> None:
    root = ElementTree.fromstring(picture(title="<script>x</script>", description="a & b"))
    texts = {element.get("id"): element.text for element in root if element.get("id")}
    assert [texts[name] for name in (root.get("aria-labelledby") or "").split()] == ["<script>x</script>", "a & b"]
    assert "<script" not in picture(title="<script>x</script>")


def test_text_stays_text() -> None:
    texts = [element.text for element in ElementTree.fromstring(picture()).iter("{http://www.w3.org/2000/svg}text")]
    assert "steps" in texts
