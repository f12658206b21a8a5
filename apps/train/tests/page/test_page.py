"""The page as a whole: it is there for any run, whole, fetches nothing, and escapes what it shows."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from tp2d_train.page.page import render

from apps.train.tests.page.written import Page, facts, killed_and_resumed, new_run, start, steps


def check(html: str) -> Page:
    """What holds for every page: elements are closed, ids unique, pictures well-formed, nothing is fetched."""
    page = Page(html)
    assert len(page.ids()) == len(set(page.ids()))
    for picture in page.pictures:
        ElementTree.fromstring(picture)
    for tag, attrs in page.elements:
        assert tag != "script"
        for name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
            assert (attrs.get(name) or "#").startswith(("#", "data:,")), (tag, attrs)
    assert "@import" not in html and all(url.startswith("#") for url in re.findall(r"url\((.*?)\)", html))
    return page


def test_a_run_that_was_killed_and_resumed(tmp_path: Path) -> None:
    page = check(render([facts(killed_and_resumed(tmp_path))]))
    for words in ("Results", "Curves", "What happened", "Time by phase", "Documents and packing", "Configuration"):
        assert words in page.text
    assert "as after a kill" in page.text and "4 ranks as 2x2 (dp x tp) on 2 nodes" in page.text
    assert len(page.pictures) == 8 and "3.11.7" in page.text
    assert ("link", {"rel": "icon", "href": "data:,"}) in page.elements, "a browser asks for no icon"


def test_runs_side_by_side(tmp_path: Path) -> None:
    pairs = (("a", "fsdp2"), ("b", "autotp"))
    runs = [facts(killed_and_resumed(tmp_path, name, engine=engine)) for name, engine in pairs]
    page = check(render(runs))
    assert "a and b" in page.text and "differs between the runs" in page.text
    assert [attrs.get("class") for tag, attrs in page.elements].count("differs") == 1


@pytest.mark.parametrize("state", ["running", "stopped", "failed", "no checkpoint", "damaged"])
def test_a_run_in_any_state_says_what_it_is_and_that_it_is_not_finished(tmp_path: Path, state: str) -> None:
    run, record = new_run(tmp_path)
    start(record)
    page = check(render([facts(run, state)]))
    assert state in page.text and any(attrs.get("class") == "note" for _, attrs in page.elements)
    assert "Time by phase" not in page.text and "None" not in page.text


def test_a_run_that_has_not_started_has_a_page(tmp_path: Path) -> None:
    page = check(render([facts(new_run(tmp_path)[0], "no checkpoint")]))
    assert "No start has got as far as training." in page.text and page.pictures == []


def test_a_run_whose_files_are_all_damaged_has_a_page(tmp_path: Path) -> None:
    run = killed_and_resumed(tmp_path)
    for file in (run.folder.config, run.folder.summary, run.folder.metrics, run.folder.events):
        file.write_bytes(b"\xff{[\n")
    page = check(render([facts(run, "damaged")]))
    assert "damaged" in page.text and "cannot be read" in page.text


def test_what_comes_from_files_is_escaped(tmp_path: Path) -> None:
    """A model's name, a message, a node and a traceback may be written by anyone."""
    bad = "<script>alert(1)</script><img src=http://x.example/>"
    run, record = new_run(tmp_path, model_name=f"builtin:{bad}", from_scratch=True)
    start(record, model_name=bad, places=f"dp 0: rank 0 on {bad}", dataset_name=bad, engine=bad)
    steps(record, 1, 2)
    record.event("warning", step=2, epoch=0, total_steps=40, message=bad)
    record.event("failed", rank=0, host=bad, error=bad, message=bad, traceback=bad)
    record.summary({"finished": False, "versions": {bad: bad}, "data": {"dropped": {bad: 1}}})
    html = render([facts(run, "failed")])
    page = check(html)
    assert "<img" not in html and page.text.count(bad) >= 8
