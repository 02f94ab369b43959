"""Files and folders that appear whole or not at all, and what to say where they cannot be written."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from masam_auto.core.errors import ImageError, OutputError
from masam_auto.core.partial import partial_path

NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
WRITE_FAILURES = NO_SPACE | {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.EISDIR,
    errno.ELOOP,
    errno.EIO,
    errno.ESTALE,
    errno.EFBIG,
}


@contextlib.contextmanager
def told_if_unwritable(path: Path, kept: str = "nothing that was there has been changed.") -> Iterator[None]:
    """Turn what keeps a block from writing into an OutputError that names `path`, a remedy, and what has been kept."""
    try:
        yield
    except OSError as error:
        if error.errno not in WRITE_FAILURES:
            raise
        remedy = "Free some space or choose" if error.errno in NO_SPACE else "Choose"
        raise OutputError(f"cannot write {path}: {error.strerror}. {remedy} another folder; {kept}") from error


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, renamed to `path` when the block ends without an error.

    The temporary name keeps the whole ending (".nii.gz"), because image writers choose the format by it.

    Raises:
        OutputError: the folder is not writable or the disk is full; `path` keeps its old content.
        ImageError: the name is too long, which is no matter of the other cases.
    """
    path = Path(path)
    temporary = partial_path(path)
    try:
        with told_if_unwritable(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            _sync(temporary)
            temporary.replace(path)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ImageError(
                f"cannot write {path}: the disk does not take names as long as this. Rename the case, or choose a "
                "folder with a shorter path."
            ) from error
        if not path.parent.is_dir():
            raise OutputError(
                f"cannot write {path}: its folder has vanished. Make it again, or choose another one."
            ) from error
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically. Raises OutputError as `atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def atomic_folder(folder: Path, *, aside: Path | None = None) -> Iterator[Path]:
    """Give a new folder beside `folder`, which takes its place, with what is in it, when the block ends without an
    error.

    Args:
        folder: may be there already, and is replaced.
        aside: what the old one is called between the two renames that replace it, if somebody is to find it there after
            the process was killed at that moment.

    Raises:
        OSError: it cannot be written; what was there has been kept.
    """
    new, aside = partial_path(folder), aside or partial_path(folder)
    try:
        new.mkdir(parents=True)
        yield new
        for path in (*new.iterdir(), new):
            _sync(path)
        if folder.exists():
            shutil.rmtree(aside, ignore_errors=True)
        take_places([(new, folder, aside)])
        shutil.rmtree(aside, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def take_places(moves: Iterable[tuple[Path, Path, Path]]) -> None:
    """Rename files and folders to their places; all of them, or none when that fails.

    Args:
        moves: each new one, its place, and where to put what is there; all on one file system.
    """
    moved: list[tuple[Path, Path]] = []
    try:
        for new, place, aside in moves:
            for source, target in ([(place, aside)] if place.exists() else []) + [(new, place)]:
                moved.append((source, target))  # before: a signal may come when it has just been done
                source.rename(target)
    except BaseException:
        for source, target in reversed(moved):
            if target.exists() and not source.exists():
                target.rename(source)
        raise


@contextlib.contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """A new folder, gone when the block ends; a parent that was made for it goes too if it stayed empty.

    Raises:
        OutputError: something within the block could not be written.
    """
    made = None if folder.parent.exists() else folder.parent
    try:
        with told_if_unwritable(folder.parent):
            folder.mkdir(parents=True)
            yield folder
    finally:
        try:
            _clear_away(folder, parent=made)
        except BaseException:  # a signal in the middle
            _clear_away(folder, parent=made)
            raise


def _clear_away(folder: Path, *, parent: Path | None) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if parent is not None:
        with contextlib.suppress(OSError):
            parent.rmdir()


def _sync(path: Path) -> None:
    """Wait until a file or folder is on the disk; some file systems have no way to, and say so."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
    finally:
        os.close(handle)
