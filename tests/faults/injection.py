"""A command in a process of its own, in which the n-th change of a file fails, or kills it.

Python's audit events tell of every file that is opened, renamed, made or removed, before it happens; what the hook
raises
is what the caller gets. Writing itself has no event: a limit on the size of files stands for a disk that is full.
"""

import errno
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masam_auto.cli.common import Main, run

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
# Where the paths that change stand among an event's arguments, and where the folder's descriptor may stand.
CHANGES = {
    "os.rename": ((0, 1), (2, 3)),
    "os.remove": ((0,), (1,)),
    "os.mkdir": ((0,), (2,)),
    "os.rmdir": ((0,), (1,)),
    "os.link": ((1,), (3,)),
    "os.symlink": ((1,), (2,)),
    "os.truncate": ((0,), (None,)),
}
ERRORS = {name: getattr(errno, name) for name in ("ENOSPC", "EIO", "EACCES")}
SIGNALS = {"kill": signal.SIGKILL, "term": signal.SIGTERM}
CHANGE = "."
LATE = "late"  # SIGTERM when the change has just been made, and the command does not yet know it
CALLS = ("rename", "replace", "unlink", "remove", "mkdir", "rmdir", "link", "symlink")
FULL = "EFBIG"  # its number is the bytes that a file may have


@dataclass(frozen=True)
class Fault:
    """What goes wrong: "kill" or "term", `LATE`, an error of `ERRORS`, or `FULL`; `number` counts changes from 1."""

    kind: str
    number: int


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, below 0 for a signal; what it said; changes of files; and those elsewhere."""

    code: int
    said: str
    changes: int
    elsewhere: tuple[str, ...]


def run_with(main: Main, arguments: Sequence[str], *, inside: Path, temporary: Path, fault: Fault | None) -> Ended:
    """Run a command's main in a fork of this process.

    Args:
        main: takes the command line.
        arguments: of it.
        inside: the folder that the command may change; changes of files in it are counted.
        temporary: another one, in which they are not.
        fault: or None for none.
    """
    # pipes, because a limit on the size of files must not meet what is noted here
    (said, says), (noted, notes) = os.pipe(), os.pipe()
    process = os.fork()
    if process == 0:
        os.close(said)
        os.close(noted)
        _child(main, arguments, folders=(inside, temporary), says=says, notes=notes, fault=fault)
    os.close(says)
    os.close(notes)
    with ThreadPoolExecutor(2) as pool:
        text, lines = pool.map(_read_all, (said, noted))
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    noted_lines = lines.splitlines()
    elsewhere = tuple(line for line in noted_lines if line != CHANGE)
    return Ended(code=code, said=text, changes=len(noted_lines) - len(elsewhere), elsewhere=elsewhere)


def _read_all(pipe: int) -> str:
    with os.fdopen(pipe, "rb") as stream:
        return stream.read().decode(errors="replace")


def _child(
    main: Main, arguments: Sequence[str], *, folders: tuple[Path, Path], says: int, notes: int, fault: Fault | None
) -> None:
    """Run the command and end, whatever happens."""
    code = 70
    try:
        for stream in (1, 2):
            os.dup2(says, stream)
        sys.stdout, sys.stderr = (
            os.fdopen(1, "w"),
            os.fdopen(2, "w"),
        )  # what they were before knows another kind of file
        if fault is not None and fault.kind == FULL:
            resource.setrlimit(resource.RLIMIT_FSIZE, (fault.number, resource.RLIM_INFINITY))
        due: list[bool] = []
        if fault is not None and fault.kind == LATE:
            for name in CALLS:
                setattr(os, name, _followed(getattr(os, name), due))
        sys.addaudithook(_hook(*map(str, folders), notes, fault, due))
        code = run(main, list(arguments))
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)


def _followed(change: Callable[..., Any], due: list[bool]) -> Callable[..., Any]:
    """A function of `os` after which SIGTERM comes where it is due."""

    def changed(*arguments: Any, **options: Any) -> Any:
        try:
            return change(*arguments, **options)
        finally:
            if due:
                due.clear()
                os.kill(os.getpid(), signal.SIGTERM)

    return changed


def _hook(
    inside: str, temporary: str, notes: int, fault: Fault | None, due: list[bool]
) -> Callable[[str, tuple[Any, ...]], None]:
    done = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done
        changed = _changed(event, arguments)
        if not changed:
            return
        if not any(f"{path}/".startswith(f"{inside}/") for path in changed):
            if not changed[0].startswith((temporary, "/dev/", "/proc/", "/sys/")):
                os.write(notes, f"{event} {changed}\n".encode(errors="replace"))
            return
        os.write(notes, f"{CHANGE}\n".encode())
        done += 1
        if fault is None or done != fault.number or fault.kind == FULL:
            return
        if fault.kind == LATE:
            due.append(True)
        elif fault.kind in SIGNALS:
            os.kill(os.getpid(), SIGNALS[fault.kind])
        else:
            number = ERRORS[fault.kind]
            raise OSError(number, os.strerror(number), changed[0])

    return hook


def _changed(event: str, arguments: tuple[Any, ...]) -> list[str]:
    """Absolute paths of what an event is about to change."""
    if event == "open":
        path, _, flags = arguments
        unnamed = flags & os.O_TMPFILE == os.O_TMPFILE
        return [_absolute(path, None)] if flags & WRITING and not unnamed else []
    if event not in CHANGES:
        return []
    paths, folders = CHANGES[event]
    return [
        _absolute(arguments[path], arguments[folder] if folder is not None and folder < len(arguments) else None)
        for path, folder in zip(paths, folders, strict=True)
        if path < len(arguments)
    ]


def _absolute(path: Any, folder: int | None) -> str:
    if isinstance(path, int):
        return str(Path(f"/proc/self/fd/{path}").readlink())
    place = Path(f"/proc/self/fd/{folder}").readlink() if folder is not None and folder >= 0 else Path.cwd()
    return os.path.normpath(place / os.fsdecode(path))
