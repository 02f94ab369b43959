"""What lies in a folder, in a form in which two runs of a command can be compared."""

import hashlib
import json
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

SHOWN_ONLY = (".log", ".png", ".txt", ".md")  # hold times, or words about what happened
Content = dict[str, Any]


def content_of(folder: Path, volatile: Collection[str] = ()) -> Content:
    """Each file's content by its path, hidden ones and empty folders included; JSON without the volatile keys."""
    found: Content = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            if not any(path.iterdir()):
                found[f"{name}/"] = "empty folder"
        else:
            found[name] = _content(path, volatile)
    return found


def volatile_keys(first: Content, second: Content) -> set[str]:
    """Keys of JSON whose values differ between two runs of which nothing went wrong: times and what is made of them."""
    found: set[str] = set()
    for name in first.keys() & second.keys():
        _differing(first[name], second[name], found)
    return found


def differences(found: Content, expected: Content) -> list[str]:
    """What differs, one line each."""
    lines = [f"is left over: {name}" for name in sorted(found.keys() - expected.keys())]
    lines += [f"is missing: {name}" for name in sorted(expected.keys() - found.keys())]
    return lines + [
        f"differs: {name}" for name in sorted(found.keys() & expected.keys()) if found[name] != expected[name]
    ]


def _content(path: Path, volatile: Collection[str]) -> Any:
    if path.suffix in SHOWN_ONLY:
        return "there"
    if path.suffix in (".json", ".jsonl") and path.stat().st_size:
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        return [_without(json.loads(line), volatile) for line in lines]
    if path.suffix == ".npz":  # each entry has its time
        with zipfile.ZipFile(path) as archive:
            return [(entry.filename, entry.CRC) for entry in archive.infolist()]
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _without(value: Any, volatile: Collection[str]) -> Any:
    if isinstance(value, dict):
        return {key: _without(part, volatile) for key, part in value.items() if key not in volatile}
    return [_without(part, volatile) for part in value] if isinstance(value, list) else value


def _differing(first: Any, second: Any, found: set[str]) -> None:
    if isinstance(first, dict) and isinstance(second, dict):
        for key in first.keys() & second.keys():
            if isinstance(first[key], (dict, list)):
                _differing(first[key], second[key], found)
            elif first[key] != second[key]:
                found.add(key)
    elif isinstance(first, list) and isinstance(second, list):
        for one, other in zip(first, second, strict=False):
            _differing(one, other, found)
