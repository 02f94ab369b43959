"""One process at a time works on what it would otherwise spoil for another.

The lock is the operating system's, on a small hidden file: it ends with the process that holds it, however that ends,
so that no stale one is left to be taken over.
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
    """Hold a claim while a block runs; folders that were made for the lock alone go again.

    Args:
        folder: where the lock lies, as `.WHAT.lock`.
        what: is claimed, in a word: "fold_0", "prediction".
        together: with others who say so, too.

    Raises:
        OutputError: another process holds it, or the folder cannot be written.
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
            with contextlib.suppress(OSError):  # there is something in it now
                place.rmdir()


def _acquire(path: Path, *, together: bool) -> int:
    """The descriptor of the locked file. Raises BlockingIOError where it is locked."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:  # another one, who had made the folder, has just removed it
            continue
        try:
            try:
                _lock(handle, together=together)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                logger.warning(
                    "warning: %s has no locks: see to it that one process works there at a time", path.parent
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
    """Raises BlockingIOError where another process has locked the file, OSError of `NO_LOCKS` where nothing can."""
    if fcntl is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    fcntl.flock(handle, (fcntl.LOCK_SH if together else fcntl.LOCK_EX) | fcntl.LOCK_NB)


def _is_still(path: Path, handle: int) -> bool:
    """Whether the file has not been removed by its holder meanwhile, and perhaps made again by another process."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _release(path: Path, handle: int) -> None:
    try:
        try:
            _lock(handle, together=False)
        except OSError as error:
            if error.errno not in NO_LOCKS:  # another one still holds it together with this one
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
