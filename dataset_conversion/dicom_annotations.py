"""Read RTSTRUCT and SEG objects: their ROIs by name, and the series that they were drawn on."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dataset_conversion.dicom_segments import read_segments, segment_mask
from dataset_conversion.dicom_structures import fill_contours, read_contours
from masam_auto.core.geometry import Geometry
from masam_auto.formats.dicom import read_tags, telling_damage

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

STRUCTURES, SEGMENTS = "RTSTRUCT", "SEG"
TAGS = (
    "Modality", "FrameOfReferenceUID", "ReferencedFrameOfReferenceSequence", "StructureSetROISequence",
    "ROIContourSequence", "ReferencedSeriesSequence", "SegmentSequence", "StructureSetDate", "StructureSetTime",
    "ContentDate", "ContentTime", "PatientID", "StudyInstanceUID",
)  # fmt: skip
FRAMES = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")


@dataclass(frozen=True, kw_only=True, slots=True)
class Annotation:
    """One RTSTRUCT or SEG object.

    `series` are the UIDs of the series that it refers to. If it names no series, `images` are the UIDs of its images.
    `frames` are the UIDs of its frames of reference. `rois` are the numbers and written names of all drawn ROIs.
    `patient` and `study` are only compared. `made` is its date and time, which sorts as text.
    """

    file: Path
    modality: str
    patient: str
    study: str
    series: frozenset[str]
    images: frozenset[str]
    frames: frozenset[str]
    rois: tuple[tuple[int, str], ...]
    made: str


def is_annotation(file: Path) -> bool:
    """Whether a DICOM file is an RTSTRUCT or SEG object. Raises as `read_tags`."""
    return str(read_tags(file, ("Modality",)).get("Modality")) in (STRUCTURES, SEGMENTS)


def read_annotation(file: Path) -> Annotation:
    """Read the content of an object without drawing it.

    Raises:
        DatasetError: pydicom is not installed.
        ImageError: the file is damaged.
    """
    tags = read_tags(file, TAGS)
    with telling_damage(file):
        structures = str(tags.Modality) == STRUCTURES
        series, frames = _structure_references(tags) if structures else _segment_references(tags)
        moment = ("StructureSetDate", "StructureSetTime") if structures else ("ContentDate", "ContentTime")
        return Annotation(
            file=file,
            modality=str(tags.Modality),
            patient=str(tags.get("PatientID") or ""),
            study=str(tags.get("StudyInstanceUID") or ""),
            series=frozenset(series),
            images=frozenset() if series else _image_references(file),
            frames=frozenset(frames),
            rois=tuple(_drawn_structures(tags) if structures else _segments(tags)),
            made="".join(str(tags.get(name) or "") for name in moment),
        )


def normal_name(name: str) -> str:
    """A ROI's name in lower case with single spaces, for comparison."""
    return " ".join(name.split()).casefold()


def draw_rois(
    annotation: Annotation, rois: Mapping[str, Collection[int]], grid: Geometry
) -> Iterator[tuple[str, np.ndarray, tuple[str, ...]]]:
    """Draw ROIs of one object on the grid of its image.

    Args:
        annotation: the object.
        rois: name -> numbers of each ROI; several numbers are merged.
        grid: grid of the image.

    Yields:
        Name, bool (Z, Y, X) and the decisions made.

    Raises:
        ImageError: as `fill_contours`, `read_segments` and `segment_mask`.
    """
    if annotation.modality == SEGMENTS:
        segments = read_segments(annotation.file, grid)
        for name, numbers in rois.items():
            yield name, *segment_mask(segments, numbers, grid, where=f'{annotation.file}: segment "{name}"')
        return
    contours = read_contours(annotation.file)
    for name, numbers in rois.items():
        where = f'{annotation.file}: ROI "{name}"'
        parts = [fill_contours(contours[number], grid, where=where) for number in numbers]
        yield (
            name,
            np.logical_or.reduce([mask for mask, _ in parts]),
            tuple(note for _, notes in parts for note in notes),
        )


def _items(tags: "Dataset", name: str) -> list[Any]:
    return list(tags.get(name) or ())


def _structure_references(tags: "Dataset") -> tuple[list[str], list[str]]:
    spaces = _items(tags, "ReferencedFrameOfReferenceSequence")
    series = [
        str(one.SeriesInstanceUID)
        for space in spaces
        for study in _items(space, "RTReferencedStudySequence")
        for one in _items(study, "RTReferencedSeriesSequence")
    ]
    return series, [str(space.FrameOfReferenceUID) for space in spaces if "FrameOfReferenceUID" in space]


def _segment_references(tags: "Dataset") -> tuple[list[str], list[str]]:
    series = [str(one.SeriesInstanceUID) for one in _items(tags, "ReferencedSeriesSequence")]
    return series, [str(tags.FrameOfReferenceUID)] if "FrameOfReferenceUID" in tags else []


def _image_references(file: Path) -> frozenset[str]:
    """UIDs of the images that a SEG's frames or an RTSTRUCT's contours were drawn on, from any place in the file."""
    tags = read_tags(file, (*FRAMES, "SourceImageSequence", "ROIContourSequence"))
    derived = (
        source
        for name in FRAMES
        for frame in _items(tags, name)
        for derivation in _items(frame, "DerivationImageSequence")
        for source in _items(derivation, "SourceImageSequence")
    )
    drawn = (
        image
        for roi in _items(tags, "ROIContourSequence")
        for contour in _items(roi, "ContourSequence")
        for image in _items(contour, "ContourImageSequence")
    )
    named = (*_items(tags, "SourceImageSequence"), *derived, *drawn)
    return frozenset(str(one.ReferencedSOPInstanceUID) for one in named if "ReferencedSOPInstanceUID" in one)


def _drawn_structures(tags: "Dataset") -> Iterator[tuple[int, str]]:
    names = {int(roi.ROINumber): str(roi.get("ROIName") or "") for roi in _items(tags, "StructureSetROISequence")}
    drawn = (roi for roi in _items(tags, "ROIContourSequence") if _items(roi, "ContourSequence"))
    for number in dict.fromkeys(int(roi.ReferencedROINumber) for roi in drawn):
        yield number, names.get(number, "")


def _segments(tags: "Dataset") -> Iterator[tuple[int, str]]:
    for segment in _items(tags, "SegmentSequence"):
        yield int(segment.SegmentNumber), str(segment.get("SegmentLabel") or "")
