"""Decode files with large C and C++ libraries in a separate process, so that a crash costs one file, not the command.

ITK, GDCM and FFmpeg read files from any source. Their process (`formats.decoders`) has a memory limit and ends with
this one. Answers are JSON and plain bytes, so a process that a malicious file has taken over is trusted no more than
the file itself.
"""

import atexit
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from masam_auto.core import errors
from masam_auto.core.errors import ImageError, MasamError
from masam_auto.core.file_names import utf8_name
from masam_auto.core.geometry import Geometry
from masam_auto.core.jsonio import decode, parse_json
from masam_auto.formats.raw_image import RawImage

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger(__name__)

PIPE_BYTES = 1 << 20  # the maximum on Linux for ordinary users
HEAD_LIMIT = 1 << 20  # bytes of an answer's JSON
ENDING_SECONDS = 10.0
FOR_THIS_ONE = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
KNOWN_ERRORS = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, MasamError)
}
START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from masam_auto.formats.decoders import serve; serve()"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """The part before the bytes: an array's type and shape and the rest of the image, or the error.

    `error` is the name of an exception; `said` is its message. `notes` are log messages: level and text.
    """

    error: str | None = None
    said: str = ""
    dtype: str = "uint8"
    shape: tuple[int, ...] = ()
    geometry: Geometry | None = None
    is_series: bool = False
    notes: tuple[tuple[int, str], ...] = field(default=())


def read_apart(decoder: str, path: Path, *arguments: Any) -> RawImage:
    """Decode a file in a separate process.

    Args:
        decoder: one of `formats.decoders.DECODERS`.
        path: the file.
        arguments: more for the decoder, plain data.

    Raises:
        ImageError, DatasetError, MemoryError: as the decoder raises; ImageError also if it crashes.
        RuntimeError: the decoder raised something else.
    """
    # absolute, because the process may have been started in another folder
    request = json.dumps([decoder, utf8_name(path.absolute()), *arguments]).encode() + b"\n"
    used = _used()
    if used is not None:
        with contextlib.suppress(_Crash):  # an earlier file may be the cause: try this one in a new process
            return _asked(used, request, path)
    try:
        return _asked(_start(), request, path)
    except _Crash as crash:
        raise ImageError(
            f"{path}: the library that decodes it has crashed ({crash}). "
            + ("Memory may be short: use fewer workers. Or the " if str(crash) == "SIGKILL" else "The ")
            + "file is damaged or malicious; replace it, or save it again with the program that made it."
        ) from crash


class _Crash(Exception):
    """A process has ended, or its answer is not valid."""


def _asked(process: "subprocess.Popen[bytes]", request: bytes, path: Path) -> RawImage:
    """A process's answer. The process is used again only if the answer was complete. Raises like `read_apart`, and
    _Crash.
    """
    said_all = False
    try:
        answer, array = _answer(process, request, path)
        said_all = True
    except (OSError, EOFError) as error:
        raise _Crash(_ending(process)) from error
    except (ValueError, TypeError) as error:
        raise _Crash("no answer of ours") from error
    finally:
        if said_all:
            with _lock:
                _idle.append(process)
        else:  # the answer was not read completely, for any reason
            _end(process)
    for level, text in answer.notes:
        logger.log(level, "%s", text)
    if answer.error is not None:
        kind = MemoryError if answer.error == "MemoryError" else KNOWN_ERRORS.get(answer.error, RuntimeError)
        raise kind(answer.said)
    assert answer.geometry is not None
    return RawImage(array=array, geometry=answer.geometry, is_series=answer.is_series)


def _answer(process: "subprocess.Popen[bytes]", request: bytes, path: Path) -> tuple[Answer, np.ndarray]:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(request)
    process.stdin.flush()
    size = int.from_bytes(_whole(process.stdout, 4), "little")
    if size > HEAD_LIMIT:
        raise ValueError("no answer of ours")
    answer = decode(parse_json(_whole(process.stdout, size)), Answer, where=str(path))
    array = np.empty(answer.shape, np.dtype(answer.dtype))
    if answer.error is None:
        _fill(process.stdout, array)
    return answer, array


def _ending(process: "subprocess.Popen[bytes]") -> str:
    """How a process ended that has closed its output."""
    try:
        code = process.wait(ENDING_SECONDS)
    except subprocess.TimeoutExpired:
        return "no answer of ours"
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _whole(stream: IO[bytes], size: int) -> bytes:
    content = stream.read(size)
    if len(content) < size:
        raise EOFError("it ended in the middle")
    return content


def _fill(stream: IO[bytes], array: np.ndarray) -> None:
    place = array.reshape(-1).view(np.uint8).data
    while place:
        length = stream.readinto(place)  # type: ignore[attr-defined]
        if not length:
            raise EOFError("it ended in the middle")
        place = place[length:]


_idle: list["subprocess.Popen[bytes]"] = []
_lock = threading.Lock()


def _used() -> "subprocess.Popen[bytes] | None":
    """A waiting process that has answered before, for the calling thread only."""
    with _lock:
        while _idle:
            process = _idle.pop()
            if process.poll() is None:
                return process
            _end(process)
    return None


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kill a process and close its pipes. Unwritten data is lost."""
    with contextlib.suppress(OSError), process:
        process.kill()


def _end_all() -> None:
    """At exit, also end waiting processes. Otherwise Python warns that they still run."""
    while process := _used():
        _end(process)


def _forget() -> None:
    """After a fork, forget the parent's processes: over a shared pipe, two askers would get each other's images."""
    global _lock
    _lock = threading.Lock()  # another thread may have held the old one
    for process in _idle:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.close()
        process.stdout.close()
        process.returncode = 0  # not a child of this process
    _idle.clear()


os.register_at_fork(after_in_child=_forget)
atexit.register(_end_all)


def _start() -> "subprocess.Popen[bytes]":
    # Only this process handles signals; it closes the other one's input when it ends. -P: import no module from the
    # current folder.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, FOR_THIS_ONE)
    try:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", START, json.dumps([str(place) for place in sys.path])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # libraries print no file names there, and errors are in the answer
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    with contextlib.suppress(AttributeError, OSError):  # not on every system, nor for users with many pipes
        fcntl.fcntl(process.stdout, fcntl.F_SETPIPE_SZ, PIPE_BYTES)  # type: ignore[arg-type]
    return process
