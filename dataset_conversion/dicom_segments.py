"""Put the segments of a DICOM SEG object on the grid of an image."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from masam_auto.core.errors import ImageError
from masam_auto.core.geometry import Geometry
from masam_auto.formats.dicom import (
    EVEN_STEP,
    OFF_LINE,
    SAME_DIRECTION,
    check_alike,
    read_tags,
    slices_of,
    telling_damage,
)

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

SAME_VOXELS = 0.1
"""Voxels whose centres differ by less than this part of a voxel count as the same."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Segments:
    """The frames of a SEG object.

    `pixels` (frames, Y, X) hold segment numbers, 0 for none. `slots` holds the slice of each frame in `grid`, the
    object's grid. Several frames may share a slice.
    """

    file: Path
    pixels: np.ndarray
    slots: np.ndarray
    grid: Geometry


def read_segments(file: Path, image: Geometry) -> Segments:
    """Read binary, fractional (cut at half the full value) and label map objects.

    Args:
        file: the SEG object.
        image: the grid of its image. Files often omit empty frames; then only the image tells the slice distance.

    Raises:
        DatasetError: pydicom is not installed.
        ImageError: the file is damaged, or its frames are not evenly spaced.
    """
    slots, grid = _place_frames(file, image)
    read_tags(file, ("Modality",))  # reports a missing pydicom
    import pydicom  # optional: extra `dicom`

    with telling_damage(file):
        tags = pydicom.dcmread(file, force=True)
        if "TransferSyntaxUID" not in tags.file_meta:  # without a preamble; DICOM's default
            tags.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
        pixels = tags.pixel_array.reshape(-1, *grid.shape[1:])
        return Segments(file=file, pixels=_numbered(tags, pixels), slots=slots, grid=grid)


def segment_mask(
    segments: Segments, numbers: Collection[int], image: Geometry, *, where: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The voxels of an image that lie in given segments, by the nearest voxel of the SEG object.

    Args:
        segments: from `read_segments`.
        numbers: numbers of the segments.
        image: the grid of the image.
        where: names file and ROI in messages.

    Returns:
        bool (Z, Y, X), and a note if the grids differ.

    Raises:
        ImageError: the segments lie outside the image.
    """
    volume = np.zeros(segments.grid.shape, np.uint8)
    for slot, pixels in zip(segments.slots, segments.pixels, strict=True):
        volume[slot] |= np.isin(pixels, list(numbers))
    between = np.linalg.inv(segments.grid.affine) @ image.affine
    turn, start = between[:3, :3][::-1, ::-1], between[:3, 3][::-1]  # in the order of array axes
    drift = np.abs(turn - turn.round()).max(axis=0) @ image.shape + np.abs(start - start.round()).max()
    same = drift < SAME_VOXELS and abs(abs(np.linalg.det(turn)) - 1) < SAME_VOXELS
    if same and np.array_equal(turn.round(), np.eye(3)):
        mask = _shifted(volume.astype(bool), start.round().astype(int), image.shape)
    else:
        mask = ndimage.affine_transform(
            volume, turn.round(9), start.round(6), image.shape, order=0, mode="grid-constant"
        ).astype(bool)
    if volume.any() and not mask.any():
        raise ImageError(f"{where}: is outside its image. Was it drawn on another series?")
    return mask, () if same else ("resampled to its image's grid by the nearest voxel",)


def _numbered(tags: "Dataset", pixels: np.ndarray) -> np.ndarray:
    """Segment numbers as pixels, from any of the three types."""
    if tags.SegmentationType == "LABELMAP":
        return pixels
    full = int(tags.MaximumFractionalValue) if tags.SegmentationType == "FRACTIONAL" else 1
    shared = (tags.get("SharedFunctionalGroupsSequence") or [{}])[0]
    numbers = []
    for frame in tags.PerFrameFunctionalGroupsSequence:
        named = frame if "SegmentIdentificationSequence" in frame else shared
        numbers.append(int(named["SegmentIdentificationSequence"][0].ReferencedSegmentNumber))
    values = np.array(numbers, np.min_scalar_type(max(numbers)))
    numbered: np.ndarray = (pixels >= (full + 1) // 2) * values[:, None, None]
    return numbered


def _shifted(volume: np.ndarray, shift: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """An array of the given shape whose element i is the volume's element i + shift, or False outside the volume."""
    low = np.maximum(0, -shift)
    high = np.maximum(low, np.minimum(shape, volume.shape - shift))
    result = np.zeros(shape, bool)
    there = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
    result[there] = volume[tuple(slice(a, b) for a, b in zip(low + shift, high + shift, strict=True))]
    return result


def _place_frames(file: Path, image: Geometry) -> tuple[np.ndarray, Geometry]:
    """The slice of each frame, and the object's grid. Raises ImageError."""
    frames = slices_of(file)
    for frame in frames[1:]:
        check_alike(frames[0], frame)
    first = frames[0]
    normal = np.cross(first.rows_along, first.columns_along)
    positions = np.stack([frame.position for frame in frames])
    heights = positions @ normal - (positions @ normal).min()
    across = np.cross(image.affine[:3, 0], image.affine[:3, 1])
    parallel = abs(across @ normal) > (1 - SAME_DIRECTION) * np.linalg.norm(across)
    step_of_image = image.affine[:3, 2] * np.sign(image.affine[:3, 2] @ normal)
    steps = (float(step_of_image @ normal) if parallel else 0.0, first.depth)
    even = [step for step in steps if step > 0 and np.abs(heights / step - (heights / step).round()).max() < EVEN_STEP]
    if not even:
        raise ImageError(
            f"{file}: its frames are neither on the slices of its image nor {first.depth:g} mm apart as it says. "
            "Export it again."
        )
    slots = (heights / even[0]).round().astype(int)
    lowest, highest = int(slots.argmin()), int(slots.argmax())
    way = step_of_image if even[0] == steps[0] else normal * even[0]
    if slots[highest]:
        way = (positions[highest] - positions[lowest]) / slots[highest]
    sideways = positions - positions[lowest] - slots[:, None] * way
    if np.abs(sideways).max() > OFF_LINE * min(first.spacing):
        raise ImageError(f"{file}: its frames are shifted against each other by {np.abs(sideways).max():.2g} mm.")
    length = float(np.linalg.norm(way))
    direction = np.stack([first.rows_along, first.columns_along, way / length], axis=1)
    x, y, z = positions[lowest].tolist()
    grid = Geometry(
        shape=(int(slots.max()) + 1, *first.shape),
        spacing=(length, *first.spacing),
        origin=(x, y, z),
        direction=tuple(direction.ravel().tolist()),
    )
    return slots, grid
