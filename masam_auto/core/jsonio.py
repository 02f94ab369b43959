"""Dataclasses to versioned JSON and back; files appear whole or not at all."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from masam_auto.core.errors import ImageError, MasamError, OutputError, PlanError
from masam_auto.core.file_names import visible
from masam_auto.core.partial import partial_path

T = TypeVar("T")
JSON_LIMIT = 1 << 28  # bytes; a summary of ten thousand cases of a hundred classes has as many


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, renamed to `path` when the block ends without an error.

    The temporary name keeps the whole ending (".nii.gz"), because image writers choose the format by it.

    Raises:
        OutputError: the folder is not writable or the disk is full; `path` keeps its old content.
        ImageError: the name is too long, which is no matter of the other cases.
    """
    path = Path(path)
    temporary = partial_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as handle, _where_there_is_one():
            os.fsync(handle.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ImageError(
                f"cannot write {path}: the disk does not take names as long as this. Rename the case, or choose a folder with a "
                "shorter path."
            ) from error
        if not path.parent.is_dir():
            raise OutputError(
                f"cannot write {path}: its folder has vanished. Make it again, or choose another one."
            ) from error
        if error.errno in WRITE_FAILURES:
            remedy = "Free some space or choose" if error.errno in NO_SPACE else "Choose"
            raise OutputError(
                f"cannot write {path}: {os.strerror(error.errno or 0)}. {remedy} another folder; "
                "nothing that was there has been changed."
            ) from error
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _where_there_is_one() -> Iterator[None]:
    """Some file systems have no way to wait until a file is on the disk, and say so."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise


NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
WRITE_FAILURES = NO_SPACE | {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ELOOP,
    errno.EIO, errno.ESTALE, errno.EFBIG,
}  # fmt: skip


@contextlib.contextmanager
def scratch_folder(folder: Path) -> Iterator[Path]:
    """A new folder, gone when the block ends; a parent that was made for it goes too if it stayed empty.

    Raises:
        OutputError: something within the block could not be written.
    """
    try:
        with passing_folder(folder):
            yield folder
    except OSError as error:
        if error.errno not in WRITE_FAILURES:
            raise
        remedy = "Free some space or choose" if error.errno in NO_SPACE else "Choose"
        raise OutputError(
            f"cannot write {folder.parent}: {os.strerror(error.errno or 0)}. {remedy} another folder; nothing that was there has "
            "been changed."
        ) from error


@contextlib.contextmanager
def passing_folder(folder: Path) -> Iterator[Path]:
    """As `scratch_folder`; what cannot be written is an OSError."""
    made = None if folder.parent.exists() else folder.parent
    try:
        folder.mkdir(parents=True)
        yield folder
    finally:
        try:
            _clear_away(folder, parent=made)
        except BaseException:  # a signal in the middle
            _clear_away(folder, parent=made)
            raise


def _clear_away(folder: Path, *, parent: Path | None) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if parent is not None:
        with contextlib.suppress(OSError):
            parent.rmdir()


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically. Raises OutputError as `atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def to_plain(value: Any) -> Any:
    """Turn dataclasses, tuples and enums into JSON's dicts, lists and scalars."""
    return msgspec.to_builtins(value, str_keys=True)


def write_json(path: Path, value: Any) -> None:
    """Write a dataclass, or plain data, as indented JSON, atomically.

    Not-a-number is written as `NaN`, as Python's json module and nnU-Net do.
    """
    text = json.dumps(to_plain(value), indent=2, ensure_ascii=False)
    write_bytes(path, (text + "\n").encode())


def parse_json(content: bytes | str, *, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """Plain data from JSON, whoever wrote it.

    Args:
        content: UTF-8.
        pairs: makes an object of its keys and values.

    Raises:
        ValueError: not JSON, nested deeper than Python follows, numbers of thousands of digits, or text that is none (halves of
            characters), which could not be written again.
    """
    try:
        plain = json.loads(content, object_pairs_hook=pairs)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if (b"\\ud" if isinstance(content, bytes) else "\\ud") in content.lower():  # type: ignore[operator]
        json.dumps(plain, ensure_ascii=False).encode()
    return plain


def read_bounded(path: Path) -> bytes:
    """The bytes of a file of JSON.

    Raises:
        ValueError: a pipe, a device or something else that may never end, or larger than any file of ours.
        OSError: missing or unreadable.
    """
    state = path.stat()
    if stat.S_ISDIR(state.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(state.st_mode):
        raise ValueError("it is no plain file")
    with path.open("rb") as handle:
        content = handle.read(JSON_LIMIT + 1)
    if len(content) > JSON_LIMIT:
        raise ValueError(f"it is larger than {JSON_LIMIT >> 20} MiB")
    return content


def read_plain(path: Path, *, what: str) -> Any:
    """Read JSON without a schema.

    Args:
        path: the file.
        what: what the file is, for messages ("plan").

    Raises:
        PlanError: the file is missing, unreadable or not JSON.
    """
    try:
        return parse_json(read_bounded(Path(path)))
    except FileNotFoundError as error:
        raise PlanError(f"{what} not found: {path}") from error
    except OSError as error:
        raise PlanError(f"{what} cannot be read: {path}: {error.strerror}") from error
    except ValueError as error:
        raise PlanError(f"{path} is not valid JSON ({error}). Restore it or create it anew.") from error


def read_json(path: Path, kind: type[T], *, what: str) -> T:
    """Read a dataclass from JSON, strictly.

    Args:
        path: the file.
        kind: the dataclass. Where it has a class attribute default `version`, newer files are refused.
        what: what the file is, for messages ("plan").

    Raises:
        PlanError: missing, not JSON, of a newer version, unknown or missing fields, or values that the
            dataclass refuses.
    """
    plain = read_plain(path, what=what)
    known = _known_version(kind)
    version = plain.get("version") if isinstance(plain, dict) else None
    if known is not None and isinstance(version, int) and version > known:
        raise PlanError(
            f"{path} has version {version}, but this masam_auto reads {what}s up to version {known}. "
            "Update masam_auto, or create the file anew with this version."
        )
    value = decode(plain, kind, where=str(path))
    unknown = sorted(_unknown_keys(plain, to_plain(value)))
    if unknown:
        raise PlanError(
            f"{path} has unknown fields: {visible(', '.join(unknown))}. Remove them or correct their names."
        )
    return value


def decode(plain: Any, kind: type[T], *, where: str, strict: bool = True) -> T:
    """Convert plain data to a dataclass. Raises PlanError naming `where` and the field."""
    try:
        return msgspec.convert(plain, kind, strict=strict)
    except msgspec.ValidationError as error:
        cause = error.__cause__
        if isinstance(cause, MasamError):
            raise type(cause)(f"{where}: {cause}") from error
        raise PlanError(f"{where}: {error}") from error


def digest(value: Any) -> str:
    """SHA-256 of the canonical JSON of a value: equal values have equal digests."""
    text = json.dumps(to_plain(value), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _known_version(kind: type) -> int | None:
    fields = getattr(kind, "__dataclass_fields__", {})
    default = fields["version"].default if "version" in fields else None
    return default if isinstance(default, int) else None


def _unknown_keys(given: Any, known: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(given, dict) and isinstance(known, dict):
        for key, value in given.items():
            if key not in known:
                yield f"{prefix}{key}"
            else:
                yield from _unknown_keys(value, known[key], f"{prefix}{key}.")
    elif isinstance(given, list) and isinstance(known, list):
        for index, (left, right) in enumerate(zip(given, known, strict=False)):
            yield from _unknown_keys(left, right, f"{prefix}{index}.")
