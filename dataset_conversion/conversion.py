"""Description of a conversion: the cases of a download, what is missing, and how one image is written.

The file of each data set makes a `Conversion` from a download. `convert` writes the raw data set.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from masam_auto.core.splits import Split


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceImage:
    """One image of the download. `label_member`: name of the label file inside `label`, if that is an archive."""

    identifier: str
    image: Path
    label: Path | None
    label_member: str = ""

    @property
    def sources(self) -> tuple[Path, ...]:
        """All source files of the image."""
        return (self.image,) if self.label is None else (self.image, self.label)


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceCase:
    """One case: an image with the same identifier, or the frames of a video in order.

    `group`: its site, for scores by site.
    """

    identifier: str
    images: tuple[SourceImage, ...]
    test: bool = False
    group: str = ""

    @property
    def is_sequence(self) -> bool:
        """Whether the case is a video."""
        return [image.identifier for image in self.images] != [self.identifier]


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """The files of one image in the raw data set: one per channel, and its label file."""

    images: tuple[Path, ...]
    label: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversion:
    """How a download becomes a raw data set.

    `number` and `name` make DatasetXXX_Name. `settings` holds everything that decides what is written: data set and
    options. `about` goes into dataset.json: description, licence, source, citation. `channel_files` is the number of
    image files per case. `write` writes the files of one image and returns the decisions it made; it is called in
    worker processes. `missing` lists what the download lacks, `notes` what else is worth knowing. `splits` are by case.
    None makes five folds of the training cases, and keeps cases of one patient (`patients`: case -> number) together.
    """

    number: int
    name: str
    download: Path
    settings: dict[str, Any]
    about: dict[str, str]
    channel_names: tuple[str, ...]
    channel_files: int
    labels: dict[str, int]
    file_ending: str
    cases: tuple[SourceCase, ...]
    write: Callable[[SourceImage, Target], tuple[str, ...]]
    missing: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    splits: tuple[Split, ...] | None = None
    patients: dict[str, str] = field(default_factory=dict)

    @property
    def folder_name(self) -> str:
        """DatasetXXX_Name."""
        return f"Dataset{self.number:03d}_{self.name}"
