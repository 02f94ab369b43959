"""Files are decoded by large C and C++ libraries in a process of their own: what crashes them costs one file, not the command.

ITK, GDCM and FFmpeg read what anybody may have written. Their process (`formats.decoders`) has a memory limit, and ends with
this one. Answers are JSON and plain bytes, so that a process that was taken over is not believed more than a file.
"""

import contextlib
import json
import logging
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from masam_auto.core import errors
from masam_auto.core.errors import ImageError, MasamError
from masam_auto.core.geometry import Geometry
from masam_auto.core.jsonio import decode, parse_json
from masam_auto.formats.raw_image import RawImage

logger = logging.getLogger(__name__)

PIPE_BYTES = 1 << 20  # the most that Linux lets anybody have
HEAD_LIMIT = 1 << 20  # bytes of an answer's JSON
KNOWN_ERRORS = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, MasamError)
}
START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from masam_auto.formats.decoders import serve; serve()"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What comes before the bytes: an array's type and shape and the rest of the image, or why there is none.

    `error` is the name of an exception; `said` what it said. `notes` are what is to be logged: level and text.
    """

    error: str | None = None
    said: str = ""
    dtype: str = "uint8"
    shape: tuple[int, ...] = ()
    geometry: Geometry | None = None
    is_series: bool = False
    notes: tuple[tuple[int, str], ...] = field(default=())


def read_apart(decoder: str, path: Path, *arguments: Any) -> RawImage:
    """Decode a file in another process.

    Args:
        decoder: one of `formats.decoders.DECODERS`.
        path: the file.
        arguments: more for the decoder, plain data.

    Raises:
        ImageError, DatasetError, MemoryError: as the decoder; also where it crashes.
        RuntimeError: anything else that it raised.
    """
    with _process() as process:
        try:
            return _ask(process, decoder, path, arguments)
        except (OSError, EOFError) as error:
            process.kill()
            code = process.wait()
            cause = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise ImageError(
                f"{path}: the library that decodes it has crashed ({cause}). The file is damaged, or made to do so; replace it, or "
                "save it again with the program that made it."
            ) from error


def _ask(process: "subprocess.Popen[bytes]", decoder: str, path: Path, arguments: tuple[Any, ...]) -> RawImage:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(json.dumps([decoder, str(path), *arguments]).encode() + b"\n")
    process.stdin.flush()
    size = int.from_bytes(_whole(process.stdout, 4), "little")
    if size > HEAD_LIMIT:
        raise EOFError("no answer of ours")
    answer = decode(parse_json(_whole(process.stdout, size)), Answer, where=str(path))
    for level, text in answer.notes:
        logger.log(level, "%s", text)
    if answer.error is not None:
        kind = MemoryError if answer.error == "MemoryError" else KNOWN_ERRORS.get(answer.error, RuntimeError)
        raise kind(answer.said)
    array = np.empty(answer.shape, np.dtype(answer.dtype))
    _fill(process.stdout, array)
    assert answer.geometry is not None
    return RawImage(array=array, geometry=answer.geometry, is_series=answer.is_series)


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


@contextlib.contextmanager
def _process() -> Iterator["subprocess.Popen[bytes]"]:
    """A decoding process for one thread at a time; one that goes wrong is not used again."""
    with _lock:
        process = _idle.pop() if _idle else None
    if process is None or process.poll() is not None:
        process = _start()
    try:
        yield process
    except (MasamError, MemoryError, RuntimeError):
        if process.poll() is None:
            _give_back(process)
        raise
    except BaseException:  # in the middle of an answer
        process.kill()
        process.wait()
        raise
    _give_back(process)


def _give_back(process: "subprocess.Popen[bytes]") -> None:
    with _lock:
        _idle.append(process)


def _start() -> "subprocess.Popen[bytes]":
    # what the libraries print names no file, and what went wrong is in the answer
    return subprocess.Popen(
        [sys.executable, "-c", START, json.dumps(sys.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        pipesize=PIPE_BYTES,
    )
