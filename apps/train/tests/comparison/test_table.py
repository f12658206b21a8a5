"""The table says what is known, and whether the losses agree."""

import dataclasses

import pytest
from tp2d_train.comparison.rows import Row
from tp2d_train.comparison.table import markdown, notes_of, show, table_of, verdict

DONE = Row(
    name="fsdp2-1x1",
    engine="fsdp2",
    mesh="1x1",
    activation_checkpointing="none",
    state="finished",
    micro_batches=2,
    steps=20,
    timed_steps=17,
    step_seconds=0.0125,
    tokens_per_second=40960.4,
    memory_bytes=3 << 20,
    sent_bytes={"dp": 0.0, "tp": 1.5 * 2**20},
    final_loss=6.5,
    loss_difference=2e-7,
)
REFUSED = Row(
    name="fsdp2-1x3",
    engine="fsdp2",
    mesh="1x3",
    activation_checkpointing="none",
    state="refused",
    reason="8 heads do not divide",
)


def test_what_is_not_known_is_empty() -> None:
    heads, cells = table_of([DONE, REFUSED])
    assert dict(zip(heads, cells[0], strict=True)) == {
        "engine": "fsdp2",
        "mesh": "1x1",
        "state": "finished",
        "micro-batches": "2",
        "ms a step": "12.5",
        "tokens/s": "40,960",
        "MiB measured": "3.0",
        "MiB sent over dp": "0",
        "MiB sent over tp": "1.5",
        "final loss": "6.500000",
        "largest difference": "2.0e-07",
    }
    assert cells[1] == ["fsdp2", "1x3", "refused", *[""] * 8]


def test_a_reason_stands_below_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    notes = notes_of([DONE, REFUSED], {}, environment={"device": "cpu", "precision": "fp32"})
    assert notes[-1] == "fsdp2-1x3 refused: 8 heads do not divide"
    assert "median of 17 steps, without the first 3" in notes[0]
    assert any("its whole process" in note for note in notes), "a CPU's memory is not the tensors'"
    show([DONE, REFUSED], notes)
    head, first, second, *_ = capsys.readouterr().out.splitlines()
    assert head.index("state") == first.index("finished") == second.index("refused")
    assert markdown([DONE, REFUSED], notes).splitlines()[1].count("|") == 12


def test_runs_with_one_reason_share_a_line() -> None:
    other = dataclasses.replace(REFUSED, name="autotp-1x3", engine="autotp")
    done = dataclasses.replace(DONE, reason="no plan: it has none")
    assert notes_of([done, REFUSED, other], {}, environment={})[-2:] == [
        "fsdp2-1x1: no plan: it has none",
        "fsdp2-1x3, autotp-1x3 refused: 8 heads do not divide",
    ]


def test_a_terminal_gets_the_same(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    show([DONE], ["a note"])
    out = capsys.readouterr().out
    assert "40,960" in out and "a note" in out


@pytest.mark.parametrize(
    ("precision", "last", "said"),
    [
        ("fp32", 5.000002, ["at most 2.0e-06 from those of a", "within 1e-05: they are, 2.0e-06 apart"]),
        ("fp32", 5.1, ["at most 1.0e-01", "THEY ARE NOT"]),
        ("bf16", 5.1, ["at most 1.0e-01"]),
    ],
)
def test_whether_the_losses_agree(precision: str, last: float, said: list[str]) -> None:
    lines = list(verdict({"a": {1: 6.0, 2: 5.0}, "b": {1: 6.0, 2: last}}, precision=precision))
    assert len(lines) == len(said) and all(part in line for part, line in zip(said, lines, strict=True))


def test_the_bound_is_one_of_the_first_20_steps() -> None:
    """Rounding grows with the steps, so a long comparison is judged by its beginning."""
    first = dict.fromkeys(range(1, 41), 5.0)
    *_, line = verdict({"a": first, "b": {**first, 40: 5.1}}, precision="fp32")
    assert "first 20 steps" in line and "they are, 0.0e+00" in line


def test_one_run_is_compared_to_nothing() -> None:
    assert list(verdict({"a": {1: 6.0}}, precision="fp32")) == []
