"""The picture is there for any number of runs, and for what is not known."""

import dataclasses
from pathlib import Path

import pytest
from tp2d_train.comparison.picture import draw, label
from tp2d_train.comparison.rows import Losses, Row

ROW = Row(name="", engine="fsdp2", mesh="1x1", activation_checkpointing="none", state="finished")


@pytest.mark.parametrize("many", [1, 12])
def test_a_picture_of_runs(many: int, tmp_path: Path) -> None:
    """One run alone, with nothing measured; twelve on more meshes than there are colours."""
    rows = [
        dataclasses.replace(ROW, name=str(at), mesh=f"{at + 1}x1", tokens_per_second=at or None) for at in range(many)
    ]
    curves: dict[str, Losses] = {row.name: {1: 3.0, 2: 2.0 + at * 1e-6} for at, row in enumerate(rows)}
    draw(rows, curves, tmp_path / "compare.png", title="a title", device="cpu")
    content = (tmp_path / "compare.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
    assert width > 1000 and height > 500


def test_recomputation_is_named_where_runs_differ_in_it() -> None:
    other = dataclasses.replace(ROW, activation_checkpointing="full")
    assert [label(ROW, [ROW]), label(other, [ROW, other])] == ["fsdp2 1x1", "fsdp2 1x1 full"]
