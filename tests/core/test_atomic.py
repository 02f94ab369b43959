"""Files and folders appear whole or not at all."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from masam_auto.core.atomic import (
    atomic_folder,
    atomic_path,
    scratch_folder,
    take_places,
    told_if_unwritable,
    write_bytes,
)
from masam_auto.core.errors import ImageError, OutputError
from masam_auto.core.jsonio import write_json
from masam_auto.core.partial import partial_path


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "value.bin"
    write_bytes(path, b"old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError("interrupted")
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["value.bin"]


def test_temporary_names_keep_the_whole_ending(tmp_path):
    with atomic_path(tmp_path / "image.nii.gz") as temporary:
        assert temporary.name.endswith(".nii.gz") and temporary.parent == tmp_path
        temporary.write_bytes(b"x")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO, errno.ESTALE, errno.EFBIG])
def test_full_disks_and_unwritable_folders_are_the_users_to_mend(tmp_path, number):
    path = tmp_path / "value.bin"
    with pytest.raises(OutputError, match="cannot write") as caught, atomic_path(path):
        raise OSError(number, os.strerror(number))
    assert str(path) in str(caught.value) and not path.exists()


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        write_json(tmp_path / "file" / "value.json", {})


def test_the_longest_names_can_be_written(tmp_path: Path) -> None:
    for name in ("a" * 248 + ".nii.gz", "ü" * 124 + ".nii.gz"):
        write_bytes(tmp_path / name, b"x")
        assert partial_path(tmp_path / name).name.endswith(".nii.gz") and (tmp_path / name).read_bytes() == b"x"


def test_names_that_the_disk_does_not_take_are_a_matter_of_their_case(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"file name is too long for this disk\. Rename the case"):
        write_bytes(tmp_path / ("a" * 256), b"x")
    assert not list(tmp_path.iterdir())


def test_a_file_system_that_cannot_wait_for_its_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: int) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", refuse)
    write_bytes(tmp_path / "a", b"x")
    assert (tmp_path / "a").read_bytes() == b"x"


def test_a_folder_that_vanishes_meanwhile(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match="its folder was deleted meanwhile"),
        atomic_path(tmp_path / "out" / "a") as temporary,
    ):
        temporary.write_bytes(b"x")
        shutil.rmtree(tmp_path / "out")


def test_a_scratch_folder_goes_and_takes_only_a_parent_that_it_made_and_left_empty(tmp_path: Path) -> None:
    for kept in (False, True):
        with scratch_folder(tmp_path / "new" / "scratch") as folder:
            (folder / "a").write_text("a")
            if kept:
                (tmp_path / "new" / "result").write_text("b")
        assert (tmp_path / "new").exists() == kept
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["result"]
    (tmp_path / "old").mkdir()
    with scratch_folder(tmp_path / "old" / "scratch"):
        pass
    assert (tmp_path / "old").exists()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OutputError, match=r"cannot write .*file: Not a directory. Choose another"),
        scratch_folder(tmp_path / "file" / "scratch"),
    ):
        pass


def test_a_signal_while_a_scratch_folder_goes_leaves_none_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove, calls = os.unlink, []

    def interrupted(*arguments: Any, **options: Any) -> None:
        remove(*arguments, **options)
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt

    def fill() -> None:
        with scratch_folder(tmp_path / "new" / "scratch") as folder:
            for name in "abcd":
                (folder / name).touch()
            monkeypatch.setattr(os, "unlink", interrupted)

    with pytest.raises(KeyboardInterrupt):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_takes_the_place_of_the_old_one_when_it_is_whole(tmp_path: Path) -> None:
    place, aside = tmp_path / "place", tmp_path / "aside"
    for text in ("first", "second"):
        with atomic_folder(place, aside=aside) as new:
            (new / "file").write_text(text)
        assert content(tmp_path) == {"place/file": text.encode()}
    with pytest.raises(OutputError, match="cannot write"), told_if_unwritable(place), atomic_folder(place) as new:
        (new / "file").write_text("third")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert content(tmp_path) == {"place/file": b"second"}


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("failing", [0, 1, 2, 3])
def test_taking_places_that_fails_halfway_is_undone(
    failing: int, late: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, new, old = (tmp_path / name for name in ("target", "new", "old"))
    for place in (target, new):
        for name in ("a", "b"):
            (place / name).mkdir(parents=True)
            (place / name / "file").write_text(place.name)
    old.mkdir()
    before, calls, rename = content(tmp_path), [], Path.rename

    def fails_once(self: Path, place: Path) -> Path:
        calls.append(self)
        if len(calls) == failing + 1:
            if late:  # as a signal that comes when it has just been done
                rename(self, place)
            raise KeyboardInterrupt
        return rename(self, place)

    monkeypatch.setattr(Path, "rename", fails_once)
    with pytest.raises(KeyboardInterrupt):
        take_places((new / name, target / name, old / name) for name in ("a", "b"))
    assert content(tmp_path) == before
