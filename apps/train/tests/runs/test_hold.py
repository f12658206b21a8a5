"""One run is trained by one process: on one machine, and on several that share the storage but no locks."""

from pathlib import Path

import pytest
from tp2d_train.runs import hold
from tp2d_train.runs.folder import RunFolder
from tp2d_train.runs.hold import Holder, held

from apps.train.tests.holding import other_process


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "a")


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """The mark of another machine's kernel."""
    path = tmp_path / "boot_id"
    path.write_text("another-kernel\n")
    return path


def test_a_second_process_is_refused_while_the_first_lives(folder: RunFolder) -> None:
    """And not by what a killed one left behind, of which the kernel knows at once."""
    with other_process(folder) as other:
        message = rf"run 'a' is being trained by process {other.pid} on .* now: stop that one first"
        with pytest.raises(ValueError, match=message), held(folder):
            pass
        other.kill()
        other.wait()
        assert folder.holder.exists()
        with held(folder):
            now = Holder.read(folder.holder)
    assert now is not None and now.pid != other.pid


def test_a_process_of_another_machine_is_refused(
    folder: RunFolder, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its lock does not reach here: the file that it locked is another one than ours."""
    with other_process(folder, boot=elsewhere) as other:
        folder.lock.unlink()
        message = rf"run 'a' is being trained by process {other.pid} on "
        with pytest.raises(ValueError, match=message), held(folder):
            pass
        assert capsys.readouterr().out.startswith(f"looking for 0 s whether process {other.pid} on ")
        assert other.poll() is None
        other.communicate("go\n")
    assert not folder.holder.exists(), "the refused one has not disturbed it, and it has cleared up"


def test_what_a_killed_process_of_another_machine_left_is_taken_over(folder: RunFolder, elsewhere: Path) -> None:
    with other_process(folder, boot=elsewhere) as other:
        other.kill()
        other.wait()
    before = Holder.read(folder.holder)
    assert before is not None and before.machine == "another-kernel"
    with held(folder):
        now = Holder.read(folder.holder)
    assert now is not None and now.machine == hold.this_machine()
    assert {path.name for path in folder.path.iterdir()} == {".lock"}


def test_a_file_system_without_locks_has_the_holders_file(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `flock` answers there. Two processes of one machine then see each other as two machines do."""

    def no_locks(file: object, operation: int) -> None:
        raise OSError(hold.errno.ENOLCK, "No locks available")

    with other_process(folder) as other:
        monkeypatch.setattr(hold.fcntl, "flock", no_locks)
        with pytest.raises(ValueError, match=f"is being trained by process {other.pid} on "), held(folder):
            pass


def test_of_two_that_find_a_dead_holder_one_has_the_run(folder: RunFolder, elsewhere: Path) -> None:
    """The second has seen the dead one's file too, and finds the first one's when it comes to remove it."""
    folder.path.mkdir()
    dead = Holder(machine="another-kernel", host="b", pid=1, token="dead", every=0.1)
    with held(folder):
        live = Holder.read(folder.holder)
        with pytest.raises(ValueError, match=f"trained by process {live.pid if live else 0} on "):
            hold._remove(folder, dead, aside=folder.path / "aside")
    assert not (folder.path / "aside").exists()
