"""Unfinished files and folders: their names tell whose they are, and those of processes that are gone are removed.

A killed process leaves what it was writing. The next one that writes in the same folder removes it: at once where both
ran on one machine since it was started, after a day where the name is another machine's, whose processes nobody can see
from here.
The times of files are not asked whether a process is gone: a file server may have another clock.
"""

import contextlib
import functools
import hashlib
import os
import platform
import re
import secrets
import shutil
import time
from pathlib import Path

import psutil

MIDDLES = bytes(range(0x80, 0xC0))  # of UTF-8's characters: no name begins with one
NAME_MAX = 255  # bytes; most file systems take no longer names
PARTIAL = re.compile(r"\.partial-([0-9a-f]{8})-(\d{1,18})-(\d{1,18})-.*", re.DOTALL)
ABANDONED_AFTER = 24 * 3600.0  # seconds without a change


def partial_prefix(process: int | None = None) -> str:
    """How the names of unfinished files begin: those of this machine, or of one of its processes."""
    return f".partial-{_machine()}-" + ("" if process is None else f"{process}-{_start_of(process)}-")


def partial_path(path: Path) -> Path:
    """A new name beside `path` for what is not finished. It keeps the whole ending, and the end of a name that is too
    long.

    What processes that are gone left in the folder goes, the first time that this process asks for a name there.
    """
    prefix = f"{partial_prefix(os.getpid())}{secrets.token_hex(4)}-"
    kept = os.fsdecode(os.fsencode(path.name)[-(NAME_MAX - len(prefix)) :].lstrip(MIDDLES))
    _remove_once(path.parent.absolute(), os.getpid())
    return path.with_name(f"{prefix}{kept}")


def remove_abandoned(folder: Path) -> None:
    """Remove unfinished files and folders whose processes are gone."""
    for path in folder.glob(".partial-*"):
        with contextlib.suppress(OSError):  # it has just been finished, or may not be removed
            if not is_abandoned(path):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def is_abandoned(path: Path) -> bool:
    """Whether this is an unfinished file or folder, and its process is gone. Raises OSError where it has vanished."""
    found = PARTIAL.fullmatch(path.name)
    if found is None or (path / "old").is_dir():  # models that a former version put aside: installing brings them back
        return False
    if found[1] == _machine():
        return not _may_run(int(found[2]), int(found[3]))
    changed = max(one.lstat().st_mtime for one in (path, *(path.rglob("*") if path.is_dir() else ())))
    return time.time() - changed > ABANDONED_AFTER


def _may_run(process: int, start: int) -> bool:
    """Whether the process of this number is there that began then; of other users' processes that may be hidden."""
    try:
        os.kill(process, 0)  # only asks
        return _start_of(process) == start
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return _start_of(process) in (start, 0)


def _start_of(process: int) -> int:
    """When a process began, by a clock that nobody sets where there is one; 0 where it is gone."""
    stat = Path(f"/proc/{process}/stat")
    try:
        if not stat.exists():
            return int(psutil.Process(process).create_time())
        state, *others = stat.read_bytes().rpartition(b")")[2].split()
        return 0 if state in (b"Z", b"X") else int(others[18])
    except (OSError, psutil.Error):
        return 0


@functools.lru_cache(maxsize=1024)
def _remove_once(folder: Path, process: int) -> None:
    remove_abandoned(folder)


@functools.cache
def _machine() -> str:
    """Tells this machine since its start, and this container on it: each counts its processes for itself.

    Two machines may have one name.
    """
    space = Path("/proc/self/ns/pid")
    inside = str(space.readlink()) if space.is_symlink() else ""
    start = Path("/proc/sys/kernel/random/boot_id")
    started = start.read_text() if start.is_file() else ""
    return hashlib.sha256(f"{platform.node()} {inside} {started}".encode()).hexdigest()[:8]
