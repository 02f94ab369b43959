"""Files and folders that appear complete or not at all, and the error messages when they cannot be written."""

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
    """Turn a failed write within the block into an OutputError that names `path`, a remedy and what was kept."""
    try:
        yield
    except OSError as error:
        if error.errno not in WRITE_FAILURES:
            raise
        remedy = "Free some space or choose" if error.errno in NO_SPACE else "Choose"
        raise OutputError(f"cannot write {path}: {error.strerror}. {remedy} another folder; {kept}") from error


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path in the folder of `path`. It is renamed to `path` when the block ends without an error.

    The temporary name keeps the full ending (".nii.gz"), because image writers choose the format by it.

    Raises:
        OutputError: the folder is not writable or the disk is full; `path` keeps its old content.
        ImageError: the file name is too long. This is separate because other cases may still succeed.
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
                f"cannot write {path}: the file name is too long for this disk. Rename the case, or choose a "
                "folder with a shorter path."
            ) from error
        if not path.parent.is_dir():
            raise OutputError(
                f"cannot write {path}: its folder was deleted meanwhile. Create it again, or choose another one."
            ) from error
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically. Raises OutputError like `atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def atomic_folder(folder: Path, *, aside: Path | None = None) -> Iterator[Path]:
    """Give a new temporary folder. It replaces `folder`, with its content, when the block ends without an error.

    Args:
        folder: the final folder; an existing one is replaced.
        aside: name that the old folder gets while it is being replaced. Give one if the old folder must be found there
            after the process was killed at that moment.

    Raises:
        OSError: the folder cannot be written; the old one was kept.
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
    """Rename files and folders to their final places: either all of them, or none if one rename fails.

    Args:
        moves: for each, the new path, its final place, and where to put what is there now; all on one file system.
    """
    moved: list[tuple[Path, Path]] = []
    try:
        for new, place, aside in moves:
            for source, target in ([(place, aside)] if place.exists() else []) + [(new, place)]:
                moved.append((source, target))  # before renaming: a signal may arrive right after it
                source.rename(target)
    except BaseException:
        for source, target in reversed(moved):
            if target.exists() and not source.exists():
                target.rename(source)
        raise


@contextlib.contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """A new folder that is deleted when the block ends. A parent created for it is deleted too if it is empty.

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
    """Wait until a file or folder is on the disk. Some file systems cannot do this and report an error."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
    finally:
        os.close(handle)
