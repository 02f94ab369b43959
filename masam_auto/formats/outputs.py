"""Where a segmentation goes: file endings, names, and the writing of one case."""

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
"""What a user may ask for, and the endings of plug-ins that write; DICOM SEG only for DICOM images."""

MASK = re.compile(r"frame\d{6,}\..+")


def choose_endings(cases: Sequence[Case], description: DatasetDescription, chosen: str | None) -> dict[str, str]:
    """The ending of the files that each case's segmentation is written to.

    Args:
        cases: to be predicted.
        description: of the data set that the model was trained on; its own ending is used for image files.
        chosen: one of `OUTPUT_FORMATS` for all cases; None for DICOM SEG where the case is DICOM, and PNG for the
            frames of video files.

    Returns:
        Case identifier -> ending.

    Raises:
        OutputError: an unknown ending, DICOM SEG for images of another kind, or its optional library is missing.
    """
    known = (*OUTPUT_FORMATS, *added_names("readers"))
    if chosen is not None and chosen not in known:
        raise OutputError(f"`output_format={chosen}`: known endings are {', '.join(known)}. Choose one of them.")
    endings = {case.identifier: chosen or _usual_ending(case, description) for case in cases}
    other = [case.identifier for case in cases if endings[case.identifier] == DICOM_SEG and not case.series]
    if other:
        raise OutputError(
            f"`output_format={DICOM_SEG}`: DICOM SEG is written for DICOM images only, and {other[0]} is none. "
            "Choose another form, such as .nii.gz."
        )
    if DICOM_SEG in endings.values():
        check_can_write_seg()
    return endings


def output_files(case: Case, ending: str) -> tuple[str, ...]:
    """Names of what `write_segmentation` makes: a file for each frame; for a video file a folder of them and a copy."""
    if is_video(case.images[0][0]):
        return (case.identifier, f"{case.identifier}_overlay.mp4")
    return tuple(f"{frame}{ending}" for frame in case.frames)


def write_segmentation(
    case: Case, segmentation: np.ndarray, geometry: Geometry, folder: Path, ending: str, labels: Labels
) -> None:
    """Write a segmentation, each file or folder at once.

    Args:
        case: what was segmented.
        segmentation: (Z, Y, X) label values; Z counts the frames of a video.
        geometry: of the case. Frames that are files of their own are written on their own grids.
        folder: where to.
        ending: from `choose_endings`.
        labels: names of the classes, for DICOM SEG.

    Raises:
        ImageError: a format that cannot hold these labels, or a DICOM source that lacks what a SEG needs.
        OutputError: the folder is not writable, the disk is full, or files of the user are where a video's masks go.
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
    """Names of the values 1, 2, ... that a segmentation may hold; a region's is the value it is written with."""
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
    """Give a temporary folder that takes the place of `path` when the block ends without an error.

    Raises:
        OutputError: `path` is a file or link, holds files that are no masks, or cannot be replaced.
    """
    if path.is_symlink() or path.is_file():
        kind = "link" if path.is_symlink() else "file"
        raise OutputError(f"{path} is a {kind}, which is not replaced. Remove it, or choose another folder.")
    others = [one.name for one in path.iterdir() if not MASK.fullmatch(one.name)] if path.is_dir() else []
    if others:
        raise OutputError(
            f"{path} holds {others[0]}, which is no mask of a frame, and is not replaced. Move it, or choose another "
            "folder."
        )
    with told_if_unwritable(path), atomic_folder(path) as new:
        yield new
