"""The cores and memory that this process may use, within the limits of a container or batch job."""

import os
from collections.abc import Iterator
from pathlib import Path

import psutil

GIB = 1 << 30
OWN_GROUPS, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
# Files of Linux's control groups, version 2 and 1: the limit, the memory in use, and the part of it that is cached
# files and can be freed.
SECOND = ("memory.max", "memory.current", "inactive_file")
FIRST = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def available_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def free_memory() -> int:
    """Bytes that this process can use without swapping and without being killed."""
    return min([int(psutil.virtual_memory().available), *_rooms()])


def check_memory(what: str, size: int) -> None:
    """Check that this many bytes are free, before the system promises more than it has.

    Raises:
        MemoryError: there is not enough; the message says what needs it.
    """
    if size > (free := free_memory()):
        raise MemoryError(f"{what} needs {shown_bytes(size)}, and {shown_bytes(free)} are free")


def shown_bytes(size: int) -> str:
    """An amount of memory as text for messages."""
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size} bytes"


def _rooms() -> Iterator[int]:
    lines = OWN_GROUPS.read_text().splitlines() if OWN_GROUPS.is_file() else []
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root, names = (GROUPS / "memory", FIRST) if controllers else (GROUPS, SECOND)
        own = root / place.lstrip("/")
        for folder in (own, *own.parents):  # in a container the path may be the machine's; the root always exists
            if folder.is_relative_to(root) and (room := _room(folder, *names)) is not None:
                yield room


def _room(folder: Path, limit: str, used: str, unused: str) -> int | None:
    """Memory that a group can still use; None if it has no limit."""
    try:
        most, taken = (int((folder / name).read_text()) for name in (limit, used))
        counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return max(0, most - taken + int(counts.get(unused, 0)))
    except (OSError, ValueError):  # "max"
        return None
