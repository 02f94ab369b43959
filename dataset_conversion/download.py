"""Search a download: nested folders, archives that were not extracted, and leftovers of other systems."""

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from masam_auto.core.errors import DatasetError, first_few

DEPTH = 7
ARCHIVES = (".zip", ".tar", ".tar.gz", ".tgz", ".7z", ".rar")


def check_download(download: Path) -> None:
    """Raises DatasetError unless the download is a folder."""
    if download.name.lower().endswith(ARCHIVES) and download.is_file():
        raise DatasetError(f"{download}: is an archive. Extract it and give the folder with -i.")
    if not download.is_dir():
        raise DatasetError(f"{download}: folder not found. Give the folder of the download with -i.")


def folders_in(download: Path) -> Iterator[Path]:
    """The download and all folders in it, sorted, without hidden ones and macOS's `__MACOSX`."""
    for name, inner, _ in os.walk(download):
        folder = Path(name)
        inner[:] = sorted(n for n in inner if not n.startswith(".") and n != "__MACOSX")
        if len(folder.relative_to(download).parts) >= DEPTH:
            inner.clear()
        yield folder


def find_folder(download: Path, fits: Callable[[Path], bool], *, what: str) -> Path:
    """The only folder in a download that fits; it may be the download itself.

    Raises:
        DatasetError: no folder fits (the message names archives that are not extracted), or several do.
    """
    check_download(download)
    found = [folder for folder in folders_in(download) if fits(folder)]
    if not found:
        raise DatasetError(f"{download}: holds no {what}.{archives_hint(download)}")
    if len(found) > 1:
        raise DatasetError(f"{download}: holds several of {what}: {first_few(found)}. Give one of them with -i.")
    return found[0]


def find_archives(download: Path) -> tuple[Path, ...]:
    """Archives in a download."""
    return tuple(
        path
        for folder in folders_in(download)
        for path in sorted(folder.iterdir())
        if path.name.lower().endswith(ARCHIVES) and not path.name.startswith(".")
    )


def archives_hint(download: Path) -> str:
    """A sentence about archives that were not extracted, or nothing."""
    names = [str(path.relative_to(download)) for path in find_archives(download)]
    if not names:
        return ""
    return f" Archives in it may hold more: {first_few(names)}. Extract them there, then run the command again."


def named_files(folder: Path, pattern: str) -> dict[str, Path]:
    """Files of a folder whose whole name matches a pattern (ignoring case), by the pattern's first group.

    Raises:
        DatasetError: two files have the same first group.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = re.fullmatch(pattern, path.name, flags=re.IGNORECASE)
        if match is None:
            continue
        if match[1] in found:
            raise DatasetError(f"{path} and {found[match[1]].name} are the same case. Remove one of them.")
        found[match[1]] = path
    return found
