"""File names that come from the content of files: what they may contain, and how to show them."""

import unicodedata
from pathlib import Path

from masam_auto.core.errors import DatasetError, ImageError
from masam_auto.core.plugins import added_names

IMAGE_ENDINGS = (
    ".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".gipl", ".mgz", ".mgh", ".png", ".bmp", ".jpg", ".jpeg",
    ".tif", ".tiff",
)  # fmt: skip
"""Of the images that can be read without plug-ins. The first ending that matches a name is the right one."""

UNSEEN = ("Cc", "Cs", "Zl", "Zp")
"""Unicode's control characters (NUL, escape, line breaks), half characters, and line separators."""


def image_endings() -> tuple[str, ...]:
    """Endings of readable images, plug-ins' included. The first ending that matches a name is the right one."""
    return (*IMAGE_ENDINGS, *added_names("readers"))


def check_file_name(name: str, *, what: str) -> None:
    """Check that a name can be a file name in its folder, with any ending.

    Args:
        name: as written in the file.
        what: where it comes from and what it names, for the message.

    Raises:
        DatasetError: it is empty, starts with a dot, or contains a slash or control character.
    """
    if not name or name.startswith(".") or "/" in name or "\\" in name or visible(name) != name:
        raise DatasetError(
            f"{what} {name!a}: cannot name a case, because files are named after it. It must not be empty, start with "
            "a dot, or contain a slash, a line break or another control character. Rename it."
        )


def utf8_name(path: Path) -> str:
    """A path for libraries that accept only UTF-8: ITK ends the whole process on any other path.

    Raises:
        ImageError: the path is not UTF-8, as on some old disks and archives.
    """
    name = str(path)
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ImageError(
            f"{path}: its name, or the name of a folder above it, is not UTF-8. Rename it with plain letters."
        ) from error
    return name


def visible(text: str) -> str:
    """A text that is safe to print: control characters, which could change a terminal, are shown as numbers."""
    return "".join(
        character.encode("unicode_escape").decode() if unicodedata.category(character) in UNSEEN else character
        for character in text
    )
