"""Plug-ins: entry points of installed packages, and plug-in files that the user names.

Each kind of thing with a name (a loss, a reader, ...) has a dict in the module that owns it, such as `LOSSES`. Packages
add to it with an entry point of the group "masam_auto.losses", a plug-in file with its own dict `LOSSES`. A package is
imported only when one of its names is needed, so a broken package affects only those who use it.
"""

import functools
import hashlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from masam_auto.core.errors import MasamError, PlanError

T = TypeVar("T")

GROUP = "masam_auto."
KINDS = (
    "augmentations", "converters", "decoders", "encoders", "increments", "losses", "metrics", "normalizers",
    "optimizers",
    "readers", "schedules",
)  # fmt: skip
VARIABLE = "MASAM_PLUGINS"
"""Environment variable with the plug-in files, separated as in PATH. Child processes read them from it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Added:
    """An entry of a plug-in: the plug-in's name, and what loads the entry."""

    origin: str
    load: Callable[[], Any]


def find_entry(
    kind: str, name: str, own: Mapping[str, T], *, field: str, form: type | tuple[type, ...] | None = None
) -> T:
    """Find an entry by name, ours or a plug-in's.

    Args:
        kind: one of `KINDS`.
        name: the requested name.
        own: our entries.
        field: where the name is written, for messages, e.g. "training.loss".
        form: the type (or types) that an entry must have; None for anything callable.

    Raises:
        PlanError: the name is unknown (the known ones are listed), or used twice.
        MasamError: the plug-in that has the name cannot be loaded.
    """
    added = list(_added(kind, name, own))
    owners = [*(["masam_auto"] if name in own else []), *(one.origin for one in added)]
    if len(owners) > 1:
        raise PlanError(
            f"{field}: the name {name!r} is used twice, by {' and by '.join(owners)}. Rename it in the plug-in, or "
            "do not use the plug-in."
        )
    if name in own:
        return own[name]
    if not added:
        raise PlanError(
            f"{field} {name!r} is unknown; known: {', '.join(known_names(kind, own))}. Correct the name, or install or "
            "name the plug-in that adds it (documentation/extending.md)."
        )
    entry: T = added[0].load()
    if not (callable(entry) if form is None else isinstance(entry, form)):
        forms = form if isinstance(form, tuple) else (form,)
        what = "function or class" if form is None else " or ".join(one.__name__ for one in forms if one)
        raise MasamError(f"{added[0].origin}: its {kind} {name!r} must be a {what}, got {type(entry).__name__}.")
    return entry


def known_names(kind: str, own: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of our entries, then those of plug-ins. No package is imported for this."""
    return tuple(dict.fromkeys([*own, *added_names(kind)]))


def added_names(kind: str) -> tuple[str, ...]:
    """Names that plug-ins add, sorted."""
    assert kind in KINDS, kind
    in_files = (name for module in _modules().values() for name in _entries_of_file(module, kind))
    return tuple(sorted({*in_files, *(name for group, name, _ in _declared() if group == kind)}))


def use_plugins(*files: Path | str) -> None:
    """Use plug-in files, in this process and its child processes. The files are executed: name only files you trust.

    Example:
        >>> from masam_auto import use_plugins
        >>> use_plugins()  # none: only those in the environment variable MASAM_PLUGINS

    Args:
        files: Python files with dicts such as `LOSSES = {"focal": focal}`; see documentation/extending.md. A file that
            has changed since the last call is executed again.

    Raises:
        MasamError: a file is missing, fails, or has no such dict.
    """
    named = (str(Path(file).expanduser().absolute()) for file in files)
    new = (path for path in _from_environment() if path not in _used)
    for path in dict.fromkeys([*new, *named]):
        source = _read(path)
        if path not in _used or _used[path][0] != source:
            _used[path] = (source, _execute(path, source))
    if _used:
        os.environ[VARIABLE] = os.pathsep.join(_used)


def plugin_files() -> tuple[str, ...]:
    """The plug-in files in use."""
    return tuple(_modules())


_used: dict[str, tuple[bytes, ModuleType]] = {}


def _modules() -> dict[str, ModuleType]:
    """Modules of the plug-in files, including those only named in the environment so far."""
    if any(path not in _used for path in _from_environment()):
        use_plugins()
    return {path: module for path, (_, module) in _used.items()}


def _from_environment() -> list[str]:
    return [path for path in os.environ.get(VARIABLE, "").split(os.pathsep) if path]


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise MasamError(f"plug-in {path} cannot be read: {error.strerror}. Give the path of a Python file.") from error


def _execute(path: str, source: bytes) -> ModuleType:
    """Run a plug-in file as a module with the same name in every process, so that its functions can be pickled."""
    name = f"masam_plugin_{Path(path).stem}_{hashlib.sha256(path.encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise MasamError(f"plug-in {path}: must be a Python file, FILE.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        exec(compile(source, path, "exec"), vars(module))
    except (Exception, SystemExit) as error:  # a plug-in may raise anything; the cause is kept
        del sys.modules[name]
        raise MasamError(
            f"plug-in {path} cannot be used: {_said(error, path)}. Correct it, or do not use it."
        ) from error
    if not any(_entries_of_file(module, kind) for kind in KINDS):
        raise MasamError(
            f"plug-in {path} adds nothing: it needs a dict of names and entries called "
            f"{', '.join(kind.upper() for kind in KINDS[:-1])} or {KINDS[-1].upper()}."
        )
    return module


def _entries_of_file(module: ModuleType, kind: str) -> Mapping[str, Any]:
    entries = getattr(module, kind.upper(), {})
    return entries if isinstance(entries, Mapping) else {}


def _said(error: BaseException, path: str) -> str:
    """The message of a plug-in's exception, with the last line of the plug-in file it went through."""
    lines, trace = [], error.__traceback__
    while trace is not None:
        lines += [trace.tb_lineno] if trace.tb_frame.f_code.co_filename == path else []
        trace = trace.tb_next
    where = f"line {lines[-1]}: " if lines else ""
    return f"{where}{type(error).__name__}: {' '.join(str(error).split())}"


def _added(kind: str, name: str, own: Mapping[str, Any]) -> Iterator[_Added]:
    """What plug-ins add under a name. Entries that a file only imported from our dict do not count."""
    assert kind in KINDS, kind
    for path, module in _modules().items():
        entries = _entries_of_file(module, kind)
        if name in entries and entries[name] is not own.get(name):
            yield _Added(origin=f"plug-in {path}", load=functools.partial(entries.__getitem__, name))
    for group, known, point in _declared():
        if (group, known) == (kind, name):
            yield _Added(origin=_package(point), load=functools.partial(_load, point))


@functools.cache
def _declared() -> tuple[tuple[str, str, Any], ...]:
    """(kind, name, entry point) from the metadata of installed packages. None of them is imported."""
    from importlib import metadata  # takes a tenth of a second, too long for --help

    found: dict[tuple[str, str, str], tuple[str, str, Any]] = {}
    for distribution in metadata.distributions():
        if f"[{GROUP}" not in (distribution.read_text("entry_points.txt") or ""):
            continue
        for point in distribution.entry_points:
            kind = point.group.removeprefix(GROUP)
            if kind in KINDS and point.group.startswith(GROUP):  # a package may appear twice on the path
                found.setdefault((kind, point.name, point.value), (kind, point.name, point))
    return tuple(found.values())


def _package(point: Any) -> str:
    return f"package {point.dist.name} {point.dist.version}" if point.dist is not None else f"package of {point.value}"


@functools.cache
def _load(point: Any) -> Any:
    try:
        return point.load()
    except Exception as error:  # a package may raise anything; the cause is kept
        raise MasamError(
            f"{_package(point)} has {point.group.removeprefix(GROUP)} {point.name!r}, but cannot be loaded: "
            f"{type(error).__name__}: {' '.join(str(error).split())}. Repair it, or remove it."
        ) from error
