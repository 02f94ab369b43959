"""The process that decodes files for `formats.apart`, one at a time, until its input closes."""

import contextlib
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
import psutil

from masam_auto.compute.machine import free_memory
from masam_auto.core.jsonio import parse_json
from masam_auto.core.log import LOGGER_NAME
from masam_auto.formats.apart import Answer
from masam_auto.formats.dicom import decode_pixels
from masam_auto.formats.raw_image import RawImage
from masam_auto.formats.videos import decode_video
from masam_auto.formats.volumes import decode_itk, decode_itk_header

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

DECODERS: dict[str, Callable[..., RawImage]] = {
    "itk": decode_itk,
    "itk_header": decode_itk_header,
    "gdcm": decode_pixels,
    "video": decode_video,
}
MEMORY_SHARE = 0.9  # of the free memory
NOTES_LIMIT, TEXT_LIMIT = 20, 5000  # together less than apart.HEAD_LIMIT, for any library output


class _Notes(logging.Handler):
    """Keeps log messages for the process that asked."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[tuple[int, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        if len(self.kept) < NOTES_LIMIT:
            self.kept.append((record.levelno, _sendable(record.getMessage())))


def serve() -> None:
    """Answer requests on standard input, until it is closed."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries print there
    for line in sys.stdin.buffer:
        decoder, path, *arguments = parse_json(line)
        with contextlib.suppress(BrokenPipeError):
            _answer(out, decoder, Path(path), arguments)


def _answer(out: IO[bytes], decoder: str, path: Path, arguments: list[Any]) -> None:
    notes, own = _Notes(), logging.getLogger(LOGGER_NAME)
    own.addHandler(notes)
    own.setLevel(logging.INFO)
    array = np.zeros(0, np.uint8)
    try:
        _limit_memory()
        image = DECODERS[decoder](path, *arguments)
        array = np.ascontiguousarray(image.array)
        answer = Answer(
            dtype=array.dtype.str, shape=array.shape, geometry=image.geometry, is_series=image.is_series,
            notes=tuple(notes.kept),
        )  # fmt: skip
    except Exception as error:  # all errors are sent to the process that asked
        answer = Answer(error=type(error).__name__, said=_sendable(str(error)), notes=tuple(notes.kept))
    own.removeHandler(notes)
    head = msgspec.json.encode(answer)
    out.write(len(head).to_bytes(4, "little") + head)
    if answer.error is None:
        out.write(array.reshape(-1).view(np.uint8).data)
    out.flush()


def _sendable(text: str) -> str:
    """A text that can be sent: limited in length, and without half characters."""
    return text[:TEXT_LIMIT].encode(errors="backslashreplace").decode()


def _limit_memory() -> None:
    """If the file needs more than the free memory, raise MemoryError here instead of killing another process."""
    room = int(psutil.Process().memory_info().vms + MEMORY_SHARE * free_memory())
    if resource is None:
        return
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    with contextlib.suppress(ValueError, OSError):  # not all systems support the limit
        resource.setrlimit(resource.RLIMIT_AS, (room if hard == resource.RLIM_INFINITY else min(room, hard), hard))
