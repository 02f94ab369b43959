"""Names that come out of files and become names of files: what they may hold, and how they are shown."""

import unicodedata
from pathlib import Path

from masam_auto.core.errors import DatasetError, ImageError
from masam_auto.core.plugins import added_names

IMAGE_ENDINGS = (
    ".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".gipl", ".mgz", ".mgh", ".png", ".bmp", ".jpg", ".jpeg",
    ".tif", ".tiff",
)  # fmt: skip
"""Of the images that can be read without plug-ins; the first one that fits a name is the right one."""

UNSEEN = ("Cc", "Cs", "Zl", "Zp")
"""Unicode's control characters (NUL, escape, line ends), halves of characters, and separators of lines."""


def image_endings() -> tuple[str, ...]:
    """Endings of the images that can be read, also by plug-ins; the first one that fits a name is the right one."""
    return (*IMAGE_ENDINGS, *added_names("readers"))


def check_file_name(name: str, *, what: str) -> None:
    """Check that a name is that of something in its folder, whatever ending it gets.

    Args:
        name: as it stands in the file.
        what: where it comes from and what it names, for the message.

    Raises:
        DatasetError: it is empty, starts with a dot, or holds a slash or what cannot be shown.
    """
    if not name or name.startswith(".") or "/" in name or "\\" in name or visible(name) != name:
        raise DatasetError(
            f"{what} {name!a}: cannot name a case, because files are named after it: it must not be empty, start with "
            "a dot or hold a slash, a line end or another control character. Rename it."
        )


def utf8_name(path: Path) -> str:
    """A path for libraries that take UTF-8 alone: ITK ends the whole process where it gets another one.

    Raises:
        ImageError: it holds bytes that are no UTF-8, as old disks and archives do.
    """
    name = str(path)
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ImageError(
            f"{path}: its name or that of a folder above it is no UTF-8. Rename it, in plain letters."
        ) from error
    return name


def visible(text: str) -> str:
    """A text as it can be printed: what would move the cursor, ring or colour a terminal is shown as a number."""
    return "".join(
        character.encode("unicode_escape").decode() if unicodedata.category(character) in UNSEEN else character
        for character in text
    )
