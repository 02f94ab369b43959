"""Write segmentations as DICOM SEG objects, which refer to the slices they were drawn on."""

import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from masam_auto import __version__
from masam_auto.core.atomic import atomic_path
from masam_auto.core.errors import ImageError, MasamError, OutputError
from masam_auto.core.geometry import Geometry
from masam_auto.formats.dicom import Slice, read_slices, read_tags, telling_damage

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

DICOM_SEG = ".dcm"
REMEDY = "Choose another format, for example `output_format=.nii.gz`."
MAY_BE_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
)  # fmt: skip
"""Tags that must be present but may be empty; anonymised files often lack them."""

NAME_LENGTH = 64
"""Longest text of DICOM's value representation LO."""

SERIES_NUMBER = 900
"""High, so that viewers list the segmentation after the scanner's own series."""


def check_can_write_seg() -> None:
    """Raise OutputError if the optional library is missing: before hours of prediction, not after."""
    if importlib.util.find_spec("highdicom") is None:
        raise OutputError(
            "writing DICOM SEG needs highdicom. Install it (pip install 'masam_auto[dicom]'), or choose another format "
            "with `output_format=.nii.gz`."
        )


def write_dicom_seg(
    path: Path, labels: np.ndarray, geometry: Geometry, files: Sequence[Path], names: Mapping[int, str]
) -> None:
    """Write labels as a binary DICOM SEG, atomically: segment n is label value n.

    Patient, study and frame of reference come from the source, and each frame refers to its instances. Frames without
    any segment are left out, as is usual.

    Args:
        path: the file.
        labels: (Z, Y, X) label values on the source's grid, as from `read_series`.
        geometry: the source's.
        files: the source's slices, in any order.
        names: label value -> name for all classes, values from 1 without gaps.

    Raises:
        ImageError: the source lacks something that a SEG needs, such as its frame of reference.
        OutputError: highdicom is not installed, or the file cannot be written.
    """
    check_can_write_seg()
    slices = read_slices(files)
    order = _file_order(slices)
    sources = [_completed(file, geometry) for file in dict.fromkeys(slices[index].file for index in order)]
    try:
        segmentation = _make_segmentation(labels[order], geometry, sources, names)
        with atomic_path(path) as temporary:
            segmentation.save_as(temporary)
    except MasamError:
        raise
    except (AttributeError, ValueError, TypeError, KeyError, NotImplementedError) as error:  # from the source's tags
        raise ImageError(f"{files[0].parent}: cannot make a DICOM SEG for this series ({error}). {REMEDY}") from error


def _make_segmentation(
    labels: np.ndarray, geometry: Geometry, sources: "Sequence[Dataset]", names: Mapping[int, str]
) -> Any:
    """The SEG object for labels (frames, Y, X), in the order of the sources' frames."""
    import highdicom  # optional: extra `dicom`; takes seconds to import

    warnings.filterwarnings("ignore", module="highdicom")  # about the source's tags, e.g. names without a family name
    return highdicom.seg.Segmentation(
        source_images=sources,
        omit_empty_frames=bool(labels.any()),  # if nothing was found, empty frames show that
        pixel_array=labels.astype(np.uint8 if labels.max() <= 255 else np.uint16),
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[_describe(value, names[value]) for value in sorted(names)],
        series_instance_uid=highdicom.UID(),
        series_number=SERIES_NUMBER,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="masam_auto",
        manufacturer_model_name="masam_auto",
        software_versions=__version__,
        device_serial_number="0",
        series_description="masam_auto segmentation",
        content_label="SEGMENTATION",
        pixel_measures=highdicom.PixelMeasuresSequence(
            pixel_spacing=geometry.spacing[1:],
            slice_thickness=float(sources[0].SliceThickness),
            spacing_between_slices=geometry.spacing[0],
        ),
    )


def _file_order(slices: Sequence[Slice]) -> list[int]:
    """Indices of slices in the frame order of a multi-frame file; single-frame files stay in position order."""
    if len({one.file for one in slices}) == len(slices):
        return list(range(len(slices)))
    return sorted(range(len(slices)), key=lambda index: (str(slices[index].file), slices[index].frame))


def _completed(file: Path, geometry: Geometry) -> "Dataset":
    """All tags of a source file, plus empty ones that DICOM requires without a value."""
    tags = read_tags(file)
    with telling_damage(file):
        if not tags.get("FrameOfReferenceUID"):
            raise ImageError(f"{file}: has no FrameOfReferenceUID, so no DICOM SEG can refer to it. {REMEDY}")
        for name in MAY_BE_EMPTY:
            if name not in tags:
                setattr(tags, name, "")
        if not tags.get("SliceThickness"):
            tags.SliceThickness = geometry.spacing[0]
    return tags


def _describe(value: int, name: str) -> Any:
    """A segment made by a program. Its kind is "tissue"; only the name says what the class is."""
    import highdicom
    from pydicom.sr.codedict import codes

    return highdicom.seg.SegmentDescription(
        segment_number=value,
        segment_label=name[:NAME_LENGTH],
        segmented_property_category=codes.SCT.Tissue,
        segmented_property_type=codes.SCT.Tissue,
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name="masam_auto", version=__version__, family=codes.cid7162.ArtificialIntelligence
        ),
    )
