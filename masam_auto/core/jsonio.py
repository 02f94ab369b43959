"""Dataclasses to versioned JSON and back."""

import errno
import hashlib
import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from masam_auto.core.atomic import write_bytes
from masam_auto.core.errors import MasamError, PlanError
from masam_auto.core.file_names import visible

T = TypeVar("T")
JSON_LIMIT = 1 << 28  # bytes; the size of a summary of ten thousand cases with a hundred classes


def to_plain(value: Any) -> Any:
    """Turn dataclasses, tuples and enums into JSON's dicts, lists and scalars."""
    return msgspec.to_builtins(value, str_keys=True)


def write_json(path: Path, value: Any) -> None:
    """Write a dataclass, or plain data, as indented JSON, atomically.

    Not-a-number is written as `NaN`, as Python's json module and nnU-Net do.

    Example:
        >>> from masam_auto.core.jsonio import write_json
        >>> write_json(Path("plan.json"), plan)
        >>> Path("plan.json").read_text().splitlines()[:3]
        ['{', '  "version": 1,', '  "name": "masam",']
    """
    text = json.dumps(to_plain(value), indent=2, ensure_ascii=False)
    write_bytes(path, (text + "\n").encode())


def parse_json(content: bytes | str, *, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """Parse JSON from any source into plain data.

    Args:
        content: UTF-8.
        pairs: builds an object from its keys and values.

    Raises:
        ValueError: not JSON, nested deeper than Python allows, numbers of thousands of digits, or half characters,
            which could not be written again.
    """
    try:
        plain = json.loads(content, object_pairs_hook=pairs)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if (b"\\ud" if isinstance(content, bytes) else "\\ud") in content.lower():  # type: ignore[operator]
        json.dumps(plain, ensure_ascii=False).encode()
    return plain


def read_bounded(path: Path) -> bytes:
    """The bytes of a JSON file.

    Raises:
        ValueError: not a plain file (a pipe or device may never end), or larger than any file of ours.
        OSError: missing or unreadable.
    """
    state = path.stat()
    if stat.S_ISDIR(state.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(state.st_mode):
        raise ValueError("it is not a regular file")
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
        raise PlanError(f"{path} is not valid JSON ({error}). Restore it or create it again.") from error


def read_json(path: Path, kind: type[T], *, what: str) -> T:
    """Read a dataclass from JSON, strictly.

    Args:
        path: the file.
        kind: the dataclass. If it has a class attribute default `version`, newer files are refused.
        what: what the file is, for messages ("plan").

    Raises:
        PlanError: missing file, not JSON, a newer version, unknown or missing fields, or values that the dataclass
            refuses.

    Example:
        >>> from masam_auto.core.jsonio import read_json
        >>> from masam_auto.core.plan import Plan
        >>> plan = read_json(paths.model_folder(dataset.name, "masam", "axis0") / "plan.json", Plan, what="plan")
        >>> plan.dataset_name, plan.configuration(None).name
        ('Dataset001_Toy', 'axis0')
    """
    plain = read_plain(path, what=what)
    known = _known_version(kind)
    version = plain.get("version") if isinstance(plain, dict) else None
    if known is not None and isinstance(version, int) and version > known:
        raise PlanError(
            f"{path} has version {version}, but this masam_auto reads {what}s up to version {known}. "
            "Update masam_auto, or create the file again with this version."
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
