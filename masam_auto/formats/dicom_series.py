"""Find the DICOM series of volumes in a folder, and say what was left out."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from masam_auto.core.errors import ImageError
from masam_auto.formats.dicom import (
    GROUPS,
    SAME_DIRECTION,
    frame_groups,
    from_groups,
    is_dicom,
    read_tags,
    telling_damage,
)

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

MIN_SLICES = 3
"""Series with fewer slices are scout views or pictures."""

NOT_IMAGES = ("SEG", "RTDOSE", "RTSTRUCT", "RTPLAN", "SR", "PR", "KO", "REG", "FID", "DOC", "AU", "RWV")
DICOMDIR = "1.2.840.10008.1.3.10"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
TAGS = (
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "StudyInstanceUID", "SeriesNumber", "SeriesDescription",
    "Modality", "ImageType", "Rows", "NumberOfFrames", "SamplesPerPixel", "ImageOrientationPatient",
    "ImagePositionPatient",
    "PatientID", "FrameOfReferenceUID", *GROUPS,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Series:
    """A series of slices that can be segmented. `files` have no particular order; `folder` contains all of them.

    `patient` and `frame` of reference are only compared, never written; "" if the files do not give them. `images` are
    the UIDs of its images.
    """

    uid: str
    study: str
    patient: str = ""
    frame: str = ""
    number: int | None
    description: str
    modality: str
    folder: Path
    files: tuple[Path, ...]
    images: frozenset[str] = frozenset()

    @property
    def key(self) -> str:
        """Distinguishes it from every other series: careless anonymisation gives several patients the same UIDs."""
        return "\n".join((self.patient, self.study, self.frame, self.uid))

    @property
    def study_key(self) -> str:
        """Distinguishes its study from every other; its own key if the files name no study."""
        return f"{self.patient}\n{self.study}" if self.study else self.key

    def __str__(self) -> str:
        """For messages."""
        number = "" if self.number is None else f" {self.number}"
        described = f' "{self.description}"' if self.description else ""
        return f"{self.folder}, series{number}{described} ({len(self.files)} files)"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Instance:
    """The needed facts of one file.

    `directions`: six cosines per slice; `places`: its position; `reason`: why it cannot belong to a volume.
    """

    file: Path
    uid: str
    patient: str
    study: str
    frame: str
    series: str
    places: tuple[tuple[float, ...], ...]
    number: int | None
    description: str
    modality: str
    has_pixels: bool
    reason: str | None
    directions: tuple[tuple[float, ...], ...]


def find_dicom_files(folder: Path) -> Iterator[Path]:
    """DICOM files in a folder and all folders below it, sorted by name; hidden ones are left out."""
    seen = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(place)) in seen:  # a link to a folder above
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (path for name in sorted(names) if not name.startswith(".") and is_dicom(path := Path(place) / name))


def find_series(files: Iterable[Path]) -> tuple[tuple[Series, ...], tuple[str, ...]]:
    """Sort DICOM files into series, and leave out everything that is not a volume.

    Left out are objects without pixels, segmentations and dose, localizers, colour pictures, images without a direction
    in space (secondary captures, most ultrasound), series of fewer than three slices, and series of slices in several
    directions. A series belongs to one patient, study and frame of reference. Copies of an image (same UID, place and
    pixels) count once. A damaged file counts as part of every series in its folder, so that reading these fails. No
    series is used if a part of it may be missing.

    Args:
        files: DICOM files, e.g. from `find_dicom_files`.

    Returns:
        The series by folder and number, and one sentence for each thing left out.

    Raises:
        DatasetError: pydicom is not installed.
    """
    instances: dict[tuple[str, ...], list[_Instance]] = {}
    damaged: dict[Path, str] = {}
    for file in files:
        try:
            instance = _read_instance(file)
        except ImageError as error:
            damaged[file] = str(error)
            continue
        if instance is not None:
            key = (instance.patient, instance.study, instance.frame, instance.series)
            instances.setdefault(key, []).append(instance)
    found, left_out = [], []
    for together in instances.values():
        every = _without_copies(together)
        kept = [one for one in every if one.reason is None]
        if kept:  # a file without pixels among images is truncated: reading it will report this
            kept = [one for one in every if one.reason is None or not one.has_pixels]
        reason = _reason_to_leave_out(kept) if kept else every[0].reason
        series = _make_series(kept or every, () if reason else damaged)
        if reason is None:
            found.append(series)
        if reason or len(kept) < len(every):
            left_out.append(f"{series}: {reason or _name_parts(every)}")
    failing = {file for one in found for file in one.files}
    left_out += [message for file, message in damaged.items() if file not in failing]
    return tuple(sorted(found, key=lambda one: (one.folder, one.number or 0, one.key))), tuple(sorted(left_out))


def name_series(series: Sequence[Series], folder: Path) -> dict[str, Series]:
    """Names for files: those of the folders below `folder`, plus the series number if a folder has several series.

    Nothing in the names comes from the patient's tags.
    """
    places = ["_".join(one.folder.relative_to(folder).parts) or folder.resolve().name for one in series]
    places = [re.sub(r"[^\w.-]+", "_", place).strip("._") or "series" for place in places]
    shared = Counter(places)
    names = [
        place if shared[place] == 1 else f"{place}_series{one.number or 0}"
        for place, one in zip(places, series, strict=True)
    ]
    repeated = Counter(names)
    return {
        name if repeated[name] == 1 else f"{name}_{hashlib.sha256(one.key.encode()).hexdigest()[:8]}": one
        for name, one in zip(names, series, strict=True)
    }


def _without_copies(instances: Sequence[_Instance]) -> list[_Instance]:
    """The images without copies. Two with the same UID but different place or pixels are two images."""
    kept: list[_Instance] = []
    known: dict[tuple[object, ...], list[_Instance]] = {}
    for one in instances:
        others = known.setdefault((one.uid, one.places), [])
        if not any(_have_equal_pixels(one.file, other.file) for other in others):
            others.append(one)
            kept.append(one)
    return kept


def _have_equal_pixels(first: Path, second: Path) -> bool:
    """Whether two files store the same pixels. Never raises: files that cannot be compared are not copies."""
    import pydicom  # optional: extra `dicom`; installed, because the tags were read

    try:
        pixels = [pydicom.dcmread(file, force=True).get("PixelData") for file in (first, second)]
    except Exception:  # pydicom raises almost anything for a damaged file; reading the series will report it
        return False
    return bool(pixels[0] == pixels[1])


def _read_instance(file: Path) -> _Instance | None:
    """The tags of one file; None for a DICOMDIR, which belongs to no series. Raises ImageError."""
    tags = read_tags(file, TAGS)
    with telling_damage(file):
        if tags.file_meta.get("MediaStorageSOPClassUID") == DICOMDIR:
            return None
        if not tags.get("SeriesInstanceUID"):
            raise ImageError(
                f"{file}: this DICOM file is damaged, or has no SeriesInstanceUID (0020,000E), which says which slices "
                "belong together. Export it again, or convert it to .nii.gz."
            )
        number = tags.get("SeriesNumber")
        modality = str(tags.get("Modality", "unknown"))
        directions = _vectors(tags, "PlaneOrientationSequence", "ImageOrientationPatient")
        if any(len(direction) != 6 for direction in directions):
            raise ImageError(f"{file}: ImageOrientationPatient must be six numbers. Export it again.")
        return _Instance(
            file=file,
            uid=str(tags.get("SOPInstanceUID") or file),
            patient=str(tags.get("PatientID") or ""),
            study=str(tags.get("StudyInstanceUID") or ""),
            frame=str(tags.get("FrameOfReferenceUID") or ""),
            places=_vectors(tags, "PlanePositionSequence", "ImagePositionPatient"),
            series=str(tags.SeriesInstanceUID),
            number=None if number is None else int(number),
            description=str(tags.get("SeriesDescription", "")).strip(),
            modality=modality,
            reason=_no_volume(
                modality,
                words={str(word).upper() for word in tags.get("ImageType") or ()},
                has_pixels="Rows" in tags,
                samples=int(tags.get("SamplesPerPixel", 1)),
                kind=str(tags.get("SOPClassUID", "")),
                has_direction=bool(directions),
            ),
            has_pixels="Rows" in tags,
            directions=directions,
        )


def _vectors(tags: "Dataset", sequence: str, name: str) -> tuple[tuple[float, ...], ...]:
    """A tag of several numbers, for each frame that has it."""
    found = (from_groups(groups, sequence, name) for groups in frame_groups(tags))
    return tuple(tuple(float(value) for value in values) for values in found if values)


def _no_volume(
    modality: str, *, words: set[str], has_pixels: bool, samples: int, kind: str, has_direction: bool
) -> str | None:
    if modality in NOT_IMAGES or not has_pixels:
        return f"not an image ({modality})"
    if words & {"LOCALIZER", "SCOUT"}:
        return "a localizer"
    if samples != 1:
        return f"colour pictures ({modality})"
    if not has_direction:
        return "a secondary capture" if kind.startswith(SECONDARY_CAPTURE) else f"no place in space ({modality})"
    return None


def _reason_to_leave_out(instances: Sequence[_Instance]) -> str | None:
    directions = np.array([direction for one in instances for direction in one.directions])  # one per slice
    if len(directions) < MIN_SLICES:
        return f"{len(directions)} slice{'s' if len(directions) > 1 else ''} only"
    if np.abs(directions - directions[0]).max() > SAME_DIRECTION:
        return "slices in several directions, as scout views have"
    return None


def _name_parts(instances: Sequence[_Instance]) -> str:
    counted = Counter(one.reason for one in instances if one.reason)
    return "only its " + ", ".join(f"{count} x {reason}" for reason, count in counted.items())


def _make_series(instances: Sequence[_Instance], damaged: Iterable[Path]) -> Series:
    first, files = instances[0], [one.file for one in instances]
    folders = {file.parent for file in files}
    return Series(
        uid=first.series,
        study=first.study,
        patient=first.patient,
        frame=first.frame,
        number=first.number,
        description=first.description,
        modality=first.modality,
        folder=Path(os.path.commonpath(folders)),
        files=(*files, *(file for file in damaged if file.parent in folders)),
        images=frozenset(one.uid for one in instances),
    )
