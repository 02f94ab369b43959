"""Output of segmentations: file endings, names, and writing one case."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from masam_auto.core.atomic import atomic_folder, told_if_unwritable
from masam_auto.core.dataset import Case, DatasetDescription
from masam_auto.core.errors import OutputError
from masam_auto.core.geometry import Geometry
from masam_auto.core.labels import Labels
from masam_auto.core.plugins import added_names
from masam_auto.formats.bitmaps import bitmap_geometry
from masam_auto.formats.dicom_seg import DICOM_SEG, check_can_write_seg, write_dicom_seg
from masam_auto.formats.io import READERS, label_ending, read_geometry, write_labels
from masam_auto.formats.videos import is_video, write_overlay

OUTPUT_FORMATS = (*(ending for ending, reader in READERS.items() if reader.write is not None), DICOM_SEG)
"""Formats that a user may choose, plus the endings of plug-ins that write. DICOM SEG only for DICOM images."""

MASK = re.compile(r"frame\d{6,}\..+")


def choose_endings(cases: Sequence[Case], description: DatasetDescription, chosen: str | None) -> dict[str, str]:
    """Choose the file ending for each case's segmentation.

    Args:
        cases: the cases to predict.
        description: of the data set that the model was trained on; its own ending is used for image files.
        chosen: one of `OUTPUT_FORMATS` for all cases; None for DICOM SEG for DICOM cases, and PNG for the frames of
            video files.

    Returns:
        Case identifier -> ending.

    Raises:
        OutputError: an unknown ending, DICOM SEG for other images, or its optional library is missing.
    """
    known = (*OUTPUT_FORMATS, *added_names("readers"))
    if chosen is not None and chosen not in known:
        raise OutputError(f"`output_format={chosen}`: known endings are {', '.join(known)}. Choose one of them.")
    endings = {case.identifier: chosen or _usual_ending(case, description) for case in cases}
    other = [case.identifier for case in cases if endings[case.identifier] == DICOM_SEG and not case.series]
    if other:
        raise OutputError(
            f"`output_format={DICOM_SEG}`: DICOM SEG is only written for DICOM images, and {other[0]} is not one. "
            "Choose another format, such as .nii.gz."
        )
    if DICOM_SEG in endings.values():
        check_can_write_seg()
    return endings


def output_files(case: Case, ending: str) -> tuple[str, ...]:
    """Names of what `write_segmentation` makes: one file per frame; for a video file a folder of them and a copy."""
    if is_video(case.images[0][0]):
        return (case.identifier, f"{case.identifier}_overlay.mp4")
    return tuple(f"{frame}{ending}" for frame in case.frames)


def write_segmentation(
    case: Case, segmentation: np.ndarray, geometry: Geometry, folder: Path, ending: str, labels: Labels
) -> None:
    """Write a segmentation. Each file or folder appears only when complete.

    Args:
        case: the segmented case.
        segmentation: (Z, Y, X) label values; Z counts the frames of a video.
        geometry: of the case. Frames that are separate files are written on their own grids.
        folder: the output folder.
        ending: from `choose_endings`.
        labels: names of the classes, for DICOM SEG.

    Raises:
        ImageError: a format that cannot store these labels, or a DICOM source that lacks something a SEG needs.
        OutputError: the folder is not writable, the disk is full, or the user's files are where the masks would go.
    """
    if ending == DICOM_SEG:
        names = segment_names(labels)
        write_dicom_seg(folder / f"{case.identifier}{ending}", segmentation, geometry, case.series[0], names)
    elif is_video(case.images[0][0]):
        write_overlay(folder / f"{case.identifier}_overlay.mp4", case.images[0][0], segmentation)
        with _folder_of_masks(folder / case.identifier) as place:
            for number, mask in enumerate(segmentation):
                write_labels(place / f"frame{number:06d}{ending}", mask[None], bitmap_geometry(*mask.shape))
    elif not case.is_sequence:
        write_labels(folder / f"{case.identifier}{ending}", segmentation, geometry, like=case.images[0][0])
    else:
        for number, (frame, (first, *_)) in enumerate(zip(case.frames, case.images, strict=True)):
            mask = segmentation[number : number + 1]
            write_labels(folder / f"{frame}{ending}", mask, read_geometry(first), like=first)


def segment_names(labels: Labels) -> dict[int, str]:
    """Names of the values 1, 2, ... that a segmentation may contain; a region's value is the one it is written with."""
    if labels.has_regions:
        named = dict(zip(labels.regions_class_order or (), labels.foreground, strict=True))
    else:
        named = {values[0]: name for name, values in labels.foreground.items()}
    return {value: named.get(value, f"label {value}") for value in range(1, max(named) + 1)}


def _usual_ending(case: Case, description: DatasetDescription) -> str:
    if case.series:
        return DICOM_SEG
    return ".png" if is_video(case.images[0][0]) else label_ending(description.file_ending)


@contextlib.contextmanager
def _folder_of_masks(path: Path) -> Iterator[Path]:
    """Give a temporary folder that replaces `path` when the block ends without an error.

    Raises:
        OutputError: `path` is a file or link, contains files that are not masks, or cannot be replaced.
    """
    if path.is_symlink() or path.is_file():
        kind = "link" if path.is_symlink() else "file"
        raise OutputError(f"{path} is a {kind}, so it was not replaced. Remove it, or choose another folder.")
    others = [one.name for one in path.iterdir() if not MASK.fullmatch(one.name)] if path.is_dir() else []
    if others:
        raise OutputError(
            f"{path} contains {others[0]}, which is not a mask of a frame, so the folder was kept. Move it, or choose "
            "another folder."
        )
    with told_if_unwritable(path), atomic_folder(path) as new:
        yield new
