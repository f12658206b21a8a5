"""`tp2d report` writes the page of a run into its folder, or where it is told to."""

from pathlib import Path

import pytest
from tp2d_train.__main__ import main

from apps.train.tests.page.written import Page, killed_and_resumed, new_run


def test_it_writes_into_the_folder_of_the_run_and_prints_the_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    killed_and_resumed(tmp_path)
    assert main(["report", "a", "--storage-path", str(tmp_path)]) == 0
    path = tmp_path / "a" / "report.html"
    assert capsys.readouterr().out == f"{path}\n"
    assert "finished" in Page(path.read_text()).text


def test_several_runs_have_one_page_beside_their_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "ab":
        killed_and_resumed(tmp_path, name)
    assert main(["report", "b", "a", "b", "--storage-path", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'report.html'}\n"
    page = Page((tmp_path / "report.html").read_text())
    assert "b and a" in page.text and not (tmp_path / "a" / "report.html").exists()


def test_the_output_is_chosen(tmp_path: Path) -> None:
    killed_and_resumed(tmp_path)
    output = tmp_path / "pages" / "mine.html"
    assert main(["report", "a", "--storage-path", str(tmp_path), "--output", str(output)]) == 0
    assert output.read_text().startswith("<!doctype html>")


def test_a_damaged_run_has_a_page_which_replaces_an_older_one(tmp_path: Path) -> None:
    killed_and_resumed(tmp_path).folder.config.write_text("a: [")
    (tmp_path / "a" / "report.html").write_text("old")
    assert main(["report", "a", "--storage-path", str(tmp_path)]) == 0
    assert "damaged" in Page((tmp_path / "a" / "report.html").read_text()).text


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["frist"], "there is no run 'frist' in {storage}; did you mean first?"),
        ([], "the following arguments are required: NAME"),
        (["first", "--outputs", "x"], "unknown option --outputs; did you mean --output?"),
        (
            ["first", "--output", "{storage}"],
            "--output {storage} is a folder: name a file, such as {storage}/report.html",
        ),
    ],
)
def test_a_mistake_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], error: str
) -> None:
    new_run(tmp_path, "first")
    line = [word.format(storage=tmp_path) for word in words]
    assert main(["report", *line, "--storage-path", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"error: {error.format(storage=tmp_path)}\n"
    assert not (tmp_path / "first" / "report.html").exists()
