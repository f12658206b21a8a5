"""A finding as a line, and a check that fails itself."""

from collections.abc import Iterator

from tp2d_train.doctor.finding import Finding, Level, findings_of


def test_a_line_says_what_was_found_and_what_to_do() -> None:
    finding = Finding(level=Level.WARNING, check="disk", text="1.0 GiB free", mend="make\nroom")
    assert str(finding) == "warning  disk            1.0 GiB free; make room"


def test_a_check_that_fails_is_a_problem_of_its_own() -> None:
    def check() -> Iterator[Finding]:
        yield Finding(check="a", text="fine")
        raise RuntimeError("no such device")

    fine, failed = findings_of(check, name="devices")
    assert fine.level is Level.OK
    assert (failed.level, failed.check) == (Level.PROBLEM, "devices")
    assert "RuntimeError: no such device" in failed.text
