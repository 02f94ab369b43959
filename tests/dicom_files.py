"""Synthetic DICOM series, written as scanners write them."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from masam_auto.core.geometry import Geometry

CT, MR = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.4"
ENHANCED_CT = "1.2.840.10008.5.1.4.1.1.2.1"
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
STRUCTURES = "1.2.840.10008.5.1.4.1.1.481.3"


def pydicom() -> Any:
    """The library; tests that need it are skipped where it is absent."""
    return pytest.importorskip("pydicom", reason="the optional library pydicom (extra `dicom`) is not installed")


def uid(name: str) -> str:
    """A UID from a name: the same for the same name."""
    return "2.25." + str(int(hashlib.sha256(name.encode()).hexdigest()[:30], 16))


def write_series(
    folder: Path,
    volume: np.ndarray,
    geometry: Geometry,
    *,
    name: str = "series",
    number: int = 1,
    order: Sequence[int] | None = None,
    slope: float = 1.0,
    intercept: float = 0.0,
    unsigned: bool = False,
    **tags: Any,
) -> list[Path]:
    """Write stored values (Z, Y, X) as one file a slice.

    Args:
        folder: made where it is not there.
        volume: whole numbers; read back they are `slope * volume + intercept`.
        geometry: of the volume; its third axis may be sheared.
        name: decides the series UID.
        number: of the series.
        order: slices in the order of the file names; a slice that is left out is missing.
        slope, intercept: as stored.
        unsigned: store unsigned values.
        tags: further tags, by keyword; None takes one out.

    Returns:
        The files in the order of their names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for place, index in enumerate(range(len(volume)) if order is None else order):
        instance = _instance(f"{name} {index} {place}", name, volume[index : index + 1], geometry, unsigned=unsigned)
        instance.SeriesNumber, instance.InstanceNumber = number, place + 1
        instance.PixelSpacing = list(geometry.spacing[1:])
        instance.ImageOrientationPatient = _cosines(geometry)
        instance.ImagePositionPatient = [float(v) for v in position(geometry, index)]
        instance.SliceThickness = 1.0  # not the distance of slices
        instance.RescaleSlope, instance.RescaleIntercept = slope, intercept
        files.append(_save(instance, folder / f"IM{place:04d}", tags))
    return files


def write_enhanced(
    path: Path, volume: np.ndarray, geometry: Geometry, *, order: Sequence[int], slopes: Sequence[float] = (1.0,)
) -> Path:
    """Write stored values (Z, Y, X) as one multi-frame file with its frames in an order; `slopes` by frame, in turn."""
    Dataset = pydicom().dataset.Dataset

    instance = _instance(path.name, path.name, volume[list(order)], geometry, unsigned=False)
    instance.file_meta.MediaStorageSOPClassUID = instance.SOPClassUID = ENHANCED_CT
    instance.SeriesNumber, instance.NumberOfFrames = 1, len(order)
    shared, measures, plane = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = list(geometry.spacing[1:]), 1.0
    plane.ImageOrientationPatient = _cosines(geometry)
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [plane]
    frames = []
    for number, index in enumerate(order):
        frame, place, content, values = Dataset(), Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [float(v) for v in position(geometry, index)]
        content.DimensionIndexValues = [index + 1]
        values.RescaleSlope, values.RescaleIntercept, values.RescaleType = slopes[number % len(slopes)], -5.0, "HU"
        frame.PlanePositionSequence, frame.FrameContentSequence = [place], [content]
        frame.PixelValueTransformationSequence = [values]
        frames.append(frame)
    instance.SharedFunctionalGroupsSequence, instance.PerFrameFunctionalGroupsSequence = [shared], frames
    return _save(instance, path, {})


def write_structures(
    path: Path,
    rois: dict[str, Sequence[np.ndarray]],
    *,
    series: str | None = "series",
    kind: str = "CLOSED_PLANAR",
    made: str = "20240101",
    **tags: Any,
) -> Path:
    """Write an RTSTRUCT: for each ROI's name its contours, (n, 3) points in mm, drawn on the series of a name."""
    Dataset, FileMetaDataset = pydicom().dataset.Dataset, pydicom().dataset.FileMetaDataset

    instance = Dataset()
    instance.file_meta = FileMetaDataset()
    instance.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    instance.SOPClassUID, instance.Modality = STRUCTURES, "RTSTRUCT"
    instance.file_meta.MediaStorageSOPInstanceUID = instance.SOPInstanceUID = uid(f"structures {path}")
    instance.SeriesInstanceUID, instance.StudyInstanceUID = uid(f"series of {path}"), uid("study")
    instance.PatientID, instance.StructureSetDate, instance.StructureSetTime = "p1", made, "120000"
    space, study, drawn_on = Dataset(), Dataset(), Dataset()
    space.FrameOfReferenceUID = uid("frame of reference")
    if series is not None:
        drawn_on.SeriesInstanceUID = uid(series)
        study.RTReferencedSeriesSequence = [drawn_on]
        space.RTReferencedStudySequence = [study]
    instance.ReferencedFrameOfReferenceSequence = [space]
    instance.StructureSetROISequence, instance.ROIContourSequence = [], []
    for number, (name, contours) in enumerate(rois.items(), start=1):
        roi, drawn = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName = number, name
        drawn.ReferencedROINumber = number
        drawn.ContourSequence = [_contour(points, kind) for points in contours]
        instance.StructureSetROISequence.append(roi)
        instance.ROIContourSequence.append(drawn)
    path.parent.mkdir(parents=True, exist_ok=True)
    return _save(instance, path, tags)


def _contour(points: np.ndarray, kind: str) -> Any:
    Dataset = pydicom().dataset.Dataset

    contour = Dataset()
    contour.ContourGeometricType, contour.NumberOfContourPoints = kind, len(points)
    contour.ContourData = [f"{value:.8g}" for value in np.ravel(points)]
    return contour


def position(geometry: Geometry, index: int) -> np.ndarray:
    """World (x, y, z) of a slice's first pixel."""
    return (geometry.affine @ np.array([0.0, 0.0, index, 1.0]))[:3]


def _cosines(geometry: Geometry) -> list[float]:
    matrix = np.reshape(geometry.direction, (3, 3))
    return [round(float(v), 8) for v in (*matrix[:, 0], *matrix[:, 1])]


def _instance(name: str, series: str, frames: np.ndarray, geometry: Geometry, *, unsigned: bool) -> Any:
    Dataset, FileMetaDataset = pydicom().dataset.Dataset, pydicom().dataset.FileMetaDataset

    instance = Dataset()
    instance.file_meta = FileMetaDataset()
    instance.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    instance.file_meta.MediaStorageSOPClassUID = instance.SOPClassUID = CT
    instance.file_meta.MediaStorageSOPInstanceUID = instance.SOPInstanceUID = uid(f"{series} {name}")
    instance.SeriesInstanceUID, instance.StudyInstanceUID = uid(series), uid("study")
    instance.FrameOfReferenceUID = uid("frame of reference")
    instance.PatientID, instance.Modality, instance.ImageType = "p1", "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    _, instance.Rows, instance.Columns = geometry.shape
    instance.SamplesPerPixel, instance.PhotometricInterpretation = 1, "MONOCHROME2"
    instance.BitsAllocated = instance.BitsStored = 16
    instance.HighBit, instance.PixelRepresentation = 15, 0 if unsigned else 1
    instance.PixelData = frames.astype(np.uint16 if unsigned else np.int16).tobytes()
    return instance


def _save(instance: Any, path: Path, tags: dict[str, Any]) -> Path:
    for keyword, value in tags.items():
        if value is None:
            delattr(instance, keyword)
        else:
            setattr(instance, keyword, value)
    instance.file_meta.MediaStorageSOPClassUID = instance.SOPClassUID
    instance.save_as(path, enforce_file_format=True)
    return path
