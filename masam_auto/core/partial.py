"""Unfinished files and folders. Their names tell which process made them; those of ended processes are removed.

A killed process leaves what it was writing. The next process that writes in the same folder removes it: at once if both
ran on this machine since it was started, else after a day, because processes of other machines cannot be checked from
here. File times are not used to tell whether a process has ended: a file server's clock may differ.
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

MIDDLES = bytes(range(0x80, 0xC0))  # continuation bytes of UTF-8: no name begins with one
NAME_MAX = 255  # bytes; the limit of most file systems
PARTIAL = re.compile(r"\.partial-([0-9a-f]{8})-(\d{1,18})-(\d{1,18})-.*", re.DOTALL)
ABANDONED_AFTER = 24 * 3600.0  # seconds without a change


def partial_prefix(process: int | None = None) -> str:
    """How names of unfinished files begin: all of this machine's, or those of one of its processes."""
    return f".partial-{_machine()}-" + ("" if process is None else f"{process}-{_start_of(process)}-")


def partial_path(path: Path) -> Path:
    """A new name in the folder of `path` for unfinished content. It keeps the full ending; long names are shortened.

    On the first call for a folder, what ended processes left there is removed.
    """
    prefix = f"{partial_prefix(os.getpid())}{secrets.token_hex(4)}-"
    kept = os.fsdecode(os.fsencode(path.name)[-(NAME_MAX - len(prefix)) :].lstrip(MIDDLES))
    _remove_once(path.parent.absolute(), os.getpid())
    return path.with_name(f"{prefix}{kept}")


def remove_abandoned(folder: Path) -> None:
    """Remove unfinished files and folders of processes that have ended."""
    for path in folder.glob(".partial-*"):
        with contextlib.suppress(OSError):  # it was just finished, or may not be removed
            if not is_abandoned(path):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def is_abandoned(path: Path) -> bool:
    """Whether this is an unfinished file or folder of a process that has ended. Raises OSError if it vanished."""
    found = PARTIAL.fullmatch(path.name)
    if found is None or (path / "old").is_dir():  # models an earlier version put aside: installing restores them
        return False
    if found[1] == _machine():
        return not _may_run(int(found[2]), int(found[3]))
    changed = max(one.lstat().st_mtime for one in (path, *(path.rglob("*") if path.is_dir() else ())))
    return time.time() - changed > ABANDONED_AFTER


def _may_run(process: int, start: int) -> bool:
    """Whether the process with this number and start time runs. Start times of other users may be hidden."""
    try:
        os.kill(process, 0)  # sends no signal, only checks
        return _start_of(process) == start
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return _start_of(process) in (start, 0)


def _start_of(process: int) -> int:
    """Start time of a process, by a clock that nobody sets if there is one; 0 if the process is gone."""
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
    """A short code for this machine since its start and for this container. Each container numbers its own processes.

    The machine's name is not enough: two machines may share one.
    """
    space = Path("/proc/self/ns/pid")
    inside = str(space.readlink()) if space.is_symlink() else ""
    start = Path("/proc/sys/kernel/random/boot_id")
    started = start.read_text() if start.is_file() else ""
    return hashlib.sha256(f"{platform.node()} {inside} {started}".encode()).hexdigest()[:8]
