"""Who works on a folder is alone, and nobody has to clean up after one that died."""

import errno
import fcntl
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from masam_auto.core.claims import claimed
from masam_auto.core.errors import OutputError

HOLD = """
import sys, time
from pathlib import Path
from masam_auto.core.claims import claimed
with claimed(Path(sys.argv[1]), "fold_0"):
    print("held", flush=True)
    time.sleep(60)
"""

TAKE_TURNS = """
import os, sys, time
from pathlib import Path
from masam_auto.core.claims import claimed
from masam_auto.core.errors import OutputError
folder = Path(sys.argv[1])
done = 0
while done < 60:
    try:
        with claimed(folder / "made", "turn"):
            with open(folder / "alone", "x"):
                pass
            os.unlink(folder / "alone")
            done += 1
    except OutputError:
        pass
"""


def test_a_second_one_is_told_who_is_there(tmp_path: Path) -> None:
    with claimed(tmp_path, "fold_0"):
        with (
            pytest.raises(OutputError, match=rf"works on fold_0 there \({platform.node()}, process {os.getpid()}\)"),
            claimed(tmp_path, "fold_0"),
        ):
            pytest.fail("both have it")
        with claimed(tmp_path, "fold_1"), claimed(tmp_path / "other", "fold_0"):
            pass
    with claimed(tmp_path, "fold_0"):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("first", "second", "free"), [(True, True, True), (True, False, False), (False, True, False)])
def test_those_who_say_so_work_together(tmp_path: Path, first: bool, second: bool, free: bool) -> None:
    with claimed(tmp_path, "prediction", together=first):
        try:
            with claimed(tmp_path, "prediction", together=second):
                assert free
        except OutputError:
            assert not free
        with pytest.raises(OutputError), claimed(tmp_path, "prediction"):
            pytest.fail("the first one is still there")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_held_is_free(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        with pytest.raises(OutputError, match=f"process {process.pid}"), claimed(tmp_path, "fold_0"):
            pytest.fail("it is held")
        process.kill()
        process.wait()
    assert (tmp_path / ".fold_0.lock").is_file()
    with claimed(tmp_path, "fold_0"):
        pass
    assert not list(tmp_path.iterdir())


def test_processes_that_hurry_are_never_two_at_once(tmp_path: Path) -> None:
    processes = [subprocess.Popen([sys.executable, "-c", TAKE_TURNS, str(tmp_path)]) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_folders_made_for_the_lock_go_unless_they_are_used(tmp_path: Path) -> None:
    with claimed(tmp_path / "a" / "b", "x"):
        pass
    assert not list(tmp_path.iterdir())
    with claimed(tmp_path / "a" / "b", "x"):
        (tmp_path / "a" / "result").touch()
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["result"]


def test_a_link_in_the_locks_place_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / ".x.lock").symlink_to(tmp_path / "victim")
    with pytest.raises(OutputError, match="cannot write"), claimed(tmp_path, "x"):
        pytest.fail("it followed the link")
    assert (tmp_path / "victim").read_text() == "precious"


def test_a_file_in_the_folders_place(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"), claimed(tmp_path / "file", "x"):
        pytest.fail("there is no folder")


def test_systems_without_locks_are_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("masam_auto.core.claims.fcntl", None)
    with claimed(tmp_path, "x"):
        assert "has no locks" in caplog.text
    assert not list(tmp_path.iterdir())


def test_file_systems_without_locks_are_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with claimed(tmp_path, "x"):
        assert "has no locks" in caplog.text
