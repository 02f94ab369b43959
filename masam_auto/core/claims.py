"""Locks, so that two processes do not work on the same folder at once.

The operating system holds the lock, on a small hidden file. It ends when the process ends, even after a crash, so no
stale lock is left behind.
"""

import contextlib
import errno
import logging
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from masam_auto.core.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP)
HOLDER_BYTES = 200


@contextlib.contextmanager
def claimed(folder: Path, what: str, *, together: bool = False) -> Iterator[None]:
    """Hold a lock while a block runs. Folders created only for the lock are removed afterwards.

    Args:
        folder: where the lock file is, as `.WHAT.lock`.
        what: the locked work, in a word: "fold_0", "prediction".
        together: share the lock with other processes that also ask to share it.

    Raises:
        OutputError: another process holds the lock, or the folder cannot be written.
    """
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    path = folder / f".{what}.lock"
    try:
        handle = _acquire(path, together=together)
    except BlockingIOError as error:
        raise OutputError(
            f"{folder}: another process works on {what} there ({_holder(path)}). Wait for it, or stop it; nothing has "
            "been changed."
        ) from error
    except OSError as error:
        raise OutputError(f"cannot write {path}: {os.strerror(error.errno or 0)}. Choose another folder.") from error
    try:
        yield
    finally:
        _release(path, handle)
        for place in made:
            with contextlib.suppress(OSError):  # the folder is not empty any more
                place.rmdir()


def _acquire(path: Path, *, together: bool) -> int:
    """The descriptor of the locked file. Raises BlockingIOError if another process holds it."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:  # the process that made the folder has just removed it
            continue
        try:
            try:
                _lock(handle, together=together)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                logger.warning(
                    "warning: %s has no locks: make sure that only one process works there at a time", path.parent
                )
            if _is_still(path, handle):
                os.ftruncate(handle, 0)
                os.pwrite(handle, f"{platform.node()}, process {os.getpid()}".encode()[:HOLDER_BYTES], 0)
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _lock(handle: int, *, together: bool) -> None:
    """Raises BlockingIOError if another process holds the lock, and OSError of `NO_LOCKS` if locks do not work here."""
    if fcntl is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    fcntl.flock(handle, (fcntl.LOCK_SH if together else fcntl.LOCK_EX) | fcntl.LOCK_NB)


def _is_still(path: Path, handle: int) -> bool:
    """Whether the path is still this file: its holder may have removed it, and another process made a new one."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _release(path: Path, handle: int) -> None:
    try:
        try:
            _lock(handle, together=False)
        except OSError as error:
            if error.errno not in NO_LOCKS:  # another process still shares the lock
                return
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
    finally:
        os.close(handle)


def _holder(path: Path) -> str:
    try:
        with path.open("rb") as handle:
            return handle.read(HOLDER_BYTES).decode(errors="replace") or "just beginning"
    except OSError:
        return "just ending"
