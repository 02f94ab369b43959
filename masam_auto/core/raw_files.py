"""Check whether raw files are still the ones that something was made from.

A file's date does not show a change: corrected files often keep an older date (rsync, unzip, a restored backup). So
size and date must be *equal*. If only the date differs, the content is compared.
"""

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from masam_auto.core.errors import ImageError

BLOCK = 1 << 22


@dataclass(frozen=True, kw_only=True, slots=True)
class RawFile:
    """A raw file as it was read. `modified` is in nanoseconds, as the file system gives it."""

    name: str
    size: int
    modified: int
    sha256: str


def note_files(files: Sequence[Path]) -> tuple[RawFile, ...]:
    """Record the state of files before they are read. For folders (DICOM series), record the files in them.

    Raises:
        ImageError: a file is missing or cannot be read.
    """
    try:
        return tuple(_noted(file) for file in _single(files))
    except OSError as error:
        raise ImageError(f"{error.filename}: cannot be read: {error.strerror}") from error


def are_unchanged(noted: Sequence[RawFile], files: Sequence[Path]) -> bool:
    """Whether files are as recorded: same names in the same order, same sizes, and same dates or contents."""
    try:
        single = _single(files)
        return len(noted) == len(single) and all(_is_same(*pair) for pair in zip(noted, single, strict=True))
    except OSError:
        return False


def file_sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal. An unchanged file is read only once per process."""
    state = path.stat()
    return _sha256_of(path.absolute(), state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _sha256_of(path: Path, size: int, changed: int) -> str:
    total = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(BLOCK):
            total.update(block)
    return total.hexdigest()


def _single(files: Sequence[Path]) -> list[Path]:
    return [
        part
        for file in files
        for part in (sorted(p for p in file.rglob("*") if p.is_file()) if file.is_dir() else [file])
    ]


def _noted(file: Path) -> RawFile:
    state = file.stat()
    return RawFile(name=file.name, size=state.st_size, modified=state.st_mtime_ns, sha256=file_sha256(file))


def _is_same(noted: RawFile, file: Path) -> bool:
    state = file.stat()
    if (noted.name, noted.size) != (file.name, state.st_size):
        return False
    return noted.modified == state.st_mtime_ns or noted.sha256 == file_sha256(file)
