"""Fill the contours of a DICOM RT structure set on the grid of an image."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from masam_auto.core.errors import ImageError
from masam_auto.core.geometry import Geometry
from masam_auto.formats.dicom import read_tags, telling_damage

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
DIGITS = 2
"""Decimals of voxel coordinates. Smaller differences are rounding: files often have three decimals in mm."""

SAME_PLANE = 0.05
"""Contours closer than this part of a slice step were drawn on one plane."""

BESIDE = 0.1
"""Contours further than this part of a slice step from a slice's centre are reported."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Contour:
    """`kind` is DICOM's geometric type; `points` (n, 3) are in LPS mm."""

    kind: str
    points: np.ndarray


def read_contours(file: Path) -> dict[int, tuple[Contour, ...]]:
    """All contours of a structure set by the number of their ROI.

    Raises:
        DatasetError: pydicom is not installed.
        ImageError: the file is damaged.
    """
    tags = read_tags(file, ("ROIContourSequence",))
    found: dict[int, tuple[Contour, ...]] = {}
    with telling_damage(file):
        for roi in tags.get("ROIContourSequence") or ():
            contours = (
                Contour(kind=str(item.get("ContourGeometricType", CLOSED[0])), points=_points(item))
                for item in roi.get("ContourSequence") or ()
            )
            number = int(roi.ReferencedROINumber)
            found[number] = (*found.get(number, ()), *contours)  # some programs split a ROI into several items
    return found


def fill_contours(contours: Sequence[Contour], grid: Geometry, *, where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """The voxels inside the closed contours of a ROI. Each contour goes to its nearest slice.

    A point inside an even number of a slice's contours is outside the ROI (a hole). A voxel counts by its centre.

    Args:
        contours: contours of one ROI.
        grid: grid of the image; it may be oblique or sheared.
        where: names file and ROI in messages.

    Returns:
        bool (Z, Y, X), and the decisions made.

    Raises:
        ImageError: a contour is not parallel to the slices, or all contours are outside the image.
    """
    closed = [contour for contour in contours if contour.kind in CLOSED and len(contour.points) > 2]
    planes: dict[int, list[tuple[float, np.ndarray]]] = {}
    for contour in closed:
        height, polygon = _on_slices(contour, grid, where)
        planes.setdefault(int(np.floor(height + 0.5)), []).append((height, polygon))
    inside = {index: plane for index, plane in planes.items() if 0 <= index < grid.shape[0]}
    if closed and not inside:
        raise ImageError(
            f"{where}: all its contours are outside the slices of its image. Was it drawn on another series?"
        )
    mask = np.zeros(grid.shape, bool)
    used, furthest = 0, 0.0
    for index, plane in inside.items():
        nearest = min((height for height, _ in plane), key=lambda height: abs(height - index))
        polygons = [polygon for height, polygon in plane if abs(height - nearest) < SAME_PLANE]
        mask[index] = fill_polygons(polygons, grid.shape[1:])
        used, furthest = used + len(polygons), max(furthest, abs(nearest - index))
    there = sum(map(len, inside.values()))
    apart = float(np.median(np.diff(sorted(inside)))) if len(inside) > 1 else 1.0
    told = (
        (len(contours) > len(closed), f"{len(contours) - len(closed)} points or open lines left out"),
        (len(closed) > there, f"{len(closed) - there} contours outside the image's slices left out"),
        (there > used, f"{there - used} contours left out; others are nearer to the same slice"),
        (furthest > BESIDE, f"contours up to {furthest * grid.spacing[0]:.2g} mm off their slices"),
        (apart >= 2, f"contours {apart:g} slices apart; slices between them stay empty"),
    )
    return mask, tuple(text for holds, text in told if holds)


def fill_polygons(polygons: Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Fill polygons by the even-odd rule.

    If a border goes exactly through a pixel's centre, the pixel belongs to the area on its right or below. So
    neighbours share no pixel, and the two coinciding sides of a keyhole's channel cancel each other.

    Args:
        polygons: (n, 2) corners (x, y) in pixels. Whole numbers are pixel centres. Corners may be outside the picture.
        shape: (Y, X).

    Returns:
        bool (Y, X).
    """
    height, width = shape
    crossings = np.zeros((height, width + 1), np.int32)
    for polygon in polygons:
        following = np.roll(polygon, -1, axis=0)
        falls = (polygon[:, 1] > following[:, 1])[:, None]
        upper, lower = np.where(falls, following, polygon), np.where(falls, polygon, following)
        first, end = (np.clip(np.ceil(points[:, 1]), 0, height).astype(int) for points in (upper, lower))
        edge = np.repeat(np.arange(len(polygon)), end - first)
        rows = np.arange(len(edge)) - np.repeat(np.cumsum(end - first) - end, end - first)
        (x0, y0), (x1, y1) = upper[edge].T, lower[edge].T
        columns = np.round(x0 + (x1 - x0) * (rows - y0) / (y1 - y0), 2 * DIGITS)
        np.add.at(crossings, (rows, np.clip(np.ceil(columns), 0, width).astype(int)), 1)
    filled: np.ndarray = np.cumsum(crossings, axis=1)[:, :width] % 2 == 1
    return filled


def _points(contour: "Dataset") -> np.ndarray:
    """Points (n, 3), parsed from the text in the file. pydicom makes an object per number, which takes ten times as
    long."""
    value = contour.get_item("ContourData").value if "ContourData" in contour else b""
    text = (value or b"").decode("ascii").rstrip("\0 ")
    return np.array(text.split("\\") if text else [], np.float64).reshape(-1, 3)


def _on_slices(contour: Contour, grid: Geometry, where: str) -> tuple[float, np.ndarray]:
    """Height of a contour in slices, and its points (n, 2) as (x, y) in pixels. Raises ImageError."""
    from_world = np.linalg.inv(grid.affine)
    voxels = np.round(contour.points @ from_world[:3, :3].T + from_world[:3, 3], DIGITS)
    height = round(float(voxels[:, 2].mean()), DIGITS)
    if np.abs(voxels[:, 2] - height).max() > 0.5:
        raise ImageError(
            f"{where}: a contour near ({', '.join(f'{v:.1f}' for v in contour.points[0])}) mm is not parallel to the "
            "slices of its image. Was it drawn on another series?"
        )
    return height, voxels[:, :2]
