"""Box prompts in three forms: as users give them, in the image's voxels, and on the preprocessed grid."""

import itertools
import math
from dataclasses import dataclass

import numpy as np

from masam_auto.core.errors import DatasetError
from masam_auto.core.geometry import Box, CaseProperties, Geometry, Shape, Triple

Edges = tuple[float, float]

# A box side this close to a voxel edge (in voxels) is moved to that edge: rounding in files must not add a voxel.
EDGE_TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True, slots=True)
class VoxelBox:
    """A box in an image's voxels: half-open ranges along Z, Y and X of the stored array."""

    box: Box


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldBox:
    """A box in the patient's space: LPS millimetres (x, y, z), as in ITK.

    `axes` is a 3 x 3 matrix by rows. Its columns are the unit directions along which the `sides` are measured.
    """

    centre: Triple
    sides: Triple
    axes: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


GivenBox = VoxelBox | WorldBox


@dataclass(frozen=True, kw_only=True, slots=True)
class GivenPoints:
    """Points on an object and beside it: voxel indices (Z, Y, X) of the stored array, or LPS millimetres (x, y, z)."""

    on: tuple[Triple, ...]
    beside: tuple[Triple, ...] = ()
    in_voxels: bool = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """What shows one object in an image: a box, or points in one slice.

    `label` is the class, by name or value; None if the prompt does not say. `title` is what a drawing program calls the
    prompt, which may be a class.
    """

    shape: GivenBox | GivenPoints
    label: str | int | None = None
    title: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class BoxPrompt:
    """A box on the preprocessed grid, slice axis first.

    `slices` are the slices to predict. `rows` and `columns` are the box's begin and end, measured from the slice's
    edge: pixel i covers i to i + 1.
    """

    slices: range
    rows: Edges
    columns: Edges


def voxels_of(given: GivenBox, geometry: Geometry, *, where: str) -> Box:
    """The smallest box of voxels around a given box, cut to the image.

    Args:
        given: in voxels or millimetres.
        geometry: the image's grid.
        where: the case, for messages.

    Raises:
        DatasetError: the box and the image have no voxel in common.
    """
    wanted = _enclosing_voxels(given, geometry)
    cut = [(max(low, 0), min(high, size)) for (low, high), size in zip(wanted, geometry.shape, strict=True)]
    if any(low >= high for low, high in cut):
        raise DatasetError(
            f"{where}: the box {wanted} (voxels; Z, Y, X) is outside the image of {geometry.shape} voxels. Check its "
            "unit, its coordinates (LPS or RAS) and the order of its numbers."
        )
    return (cut[0], cut[1], cut[2])


def reaches_beyond(given: GivenBox, geometry: Geometry) -> bool:
    """Whether a part of a box is outside the image."""
    ends = zip(_enclosing_voxels(given, geometry), geometry.shape, strict=True)
    return any(low < 0 or high > size for (low, high), size in ends)


def points_in_voxels(given: GivenPoints, geometry: Geometry, *, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Points on the object and beside it, (N, 3) and (M, 3) voxel indices (Z, Y, X) with fractions.

    Args:
        given: in voxels or millimetres.
        geometry: the image's grid.
        where: the case, for messages.

    Raises:
        DatasetError: a point outside the image.
    """
    found = []
    for points in (given.on, given.beside):
        places = np.reshape(np.asarray(points, dtype=np.float64), (-1, 3))
        if not given.in_voxels:
            places = np.linalg.solve(geometry.affine, np.c_[places, np.ones(len(places))].T)[:3].T[:, ::-1]
        for place in places:
            if not all(-0.5 <= value < size - 0.5 for value, size in zip(place, geometry.shape, strict=True)):
                raise DatasetError(
                    f"{where}: the point {tuple(round(float(value), 1) for value in place)} (voxels; Z, Y, X) is "
                    f"outside the image of {geometry.shape} voxels. Check its unit and its coordinates (LPS or RAS)."
                )
        found.append(places)
    return found[0], found[1]


def is_oblique(given: GivenBox, geometry: Geometry) -> bool:
    """Whether the box's sides are not parallel to the image's axes. Its voxels then cover more than the box."""
    if isinstance(given, VoxelBox):
        return False
    turned = np.linalg.solve(np.reshape(geometry.direction, (3, 3)), np.reshape(given.axes, (3, 3)))
    return bool(((np.abs(turned) > EDGE_TOLERANCE).sum(0) > 1).any())


def relaxed_box(box: Box, share: float, shape: Shape) -> Box:
    """A box enlarged at each side by a share of its length along that axis, at least by one voxel.

    Args:
        box: half-open voxel ranges.
        share: e.g. 0.2: a box of 10 voxels grows by 2 at each end.
        shape: of the image; the result is cut to it.
    """
    grown = []
    for (low, high), size in zip(box, shape, strict=True):
        step = max(1, round(share * (high - low)))
        grown.append((max(0, low - step), min(size, high + step)))
    return (grown[0], grown[1], grown[2])


def box_prompt(box: Box, properties: CaseProperties) -> BoxPrompt | None:
    """Convert a box of the original image to the preprocessed grid.

    If slices were resampled, one more slice is predicted at each end, because the original slices between them are
    interpolated.

    Args:
        box: half-open voxel ranges in the original image.
        properties: of the case.

    Returns:
        None if the box is outside the crop, where the image is zero.
    """
    cut = _within_crop(box, properties)
    if cut is None:
        return None
    scaled = [
        (low * new / old, high * new / old)
        for (low, high), old, new in zip(cut, properties.permuted_shape, properties.resampled_shape, strict=True)
    ]
    depth = properties.resampled_shape[0]
    margin = 0 if depth == properties.permuted_shape[0] else 1
    first = max(0, math.floor(scaled[0][0] + EDGE_TOLERANCE) - margin)
    last = min(depth, math.ceil(scaled[0][1] - EDGE_TOLERANCE) + margin)
    return BoxPrompt(slices=range(first, last), rows=scaled[1], columns=scaled[2])


def box_slices(box: Box, properties: CaseProperties) -> range:
    """The box's range along the slice axis, in slices of the cropped and permuted image, before resampling."""
    cut = _within_crop(box, properties)
    return range(0) if cut is None else range(*cut[0])


def _within_crop(box: Box, properties: CaseProperties) -> Box | None:
    """A box cut to the crop, in the crop's voxels and the network's axis order; None if nothing is left."""
    cut = [
        (max(low, start) - start, min(high, stop) - start)
        for (low, high), (start, stop) in zip(box, properties.crop, strict=True)
    ]
    if any(low >= high for low, high in cut):
        return None
    return properties.turn.ranges((cut[0], cut[1], cut[2]), properties.cropped_shape)


def _enclosing_voxels(given: GivenBox, geometry: Geometry) -> Box:
    """The smallest box of voxels around a given box, inside the image or not."""
    if isinstance(given, VoxelBox):
        return given.box
    edges = _edges_in_voxels(given, geometry)
    low, high = np.floor(edges.min(0) + EDGE_TOLERANCE), np.ceil(edges.max(0) - EDGE_TOLERANCE)
    z, y, x = ((int(a), max(int(a) + 1, int(b))) for a, b in zip(low, high, strict=True))
    return (z, y, x)


def _edges_in_voxels(given: WorldBox, geometry: Geometry) -> np.ndarray:
    """(8, 3) corners in array order (Z, Y, X), measured from the image's edge: voxel i covers i to i + 1."""
    signs = np.array(list(itertools.product((-0.5, 0.5), repeat=3)))
    corners = np.asarray(given.centre) + (signs * np.asarray(given.sides)) @ np.reshape(given.axes, (3, 3)).T
    indices = np.linalg.solve(geometry.affine, np.c_[corners, np.ones(8)].T)[:3]
    return indices.T[:, ::-1] + 0.5
