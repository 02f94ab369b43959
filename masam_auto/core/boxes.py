"""Boxes given as prompts: as people say them, in an image's voxels, and on the preprocessed grid."""

import itertools
import math
from dataclasses import dataclass

import numpy as np

from masam_auto.core.errors import DatasetError
from masam_auto.core.geometry import Box, CaseProperties, Geometry, Shape, Triple

Edges = tuple[float, float]

# A box that ends this close to a voxel's edge, in voxels, ends at that edge: rounding in files must not add a voxel.
EDGE_TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True, slots=True)
class VoxelBox:
    """A box in an image's voxels: half-open ranges along Z, Y and X of the stored array."""

    box: Box


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldBox:
    """A box in the patient's space: LPS millimetres (x, y, z), as ITK has them.

    `axes` is a 3 x 3 matrix by rows whose columns are the unit directions along which the `sides` are measured.
    """

    centre: Triple
    sides: Triple
    axes: tuple[float, ...] = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)


GivenBox = VoxelBox | WorldBox


@dataclass(frozen=True, kw_only=True, slots=True)
class BoxPrompt:
    """A box on the preprocessed grid, slice axis first.

    `slices` are those that are predicted. `rows` and `columns` are where the box begins and ends, measured from the
    slice's edge: pixel i reaches from i to i + 1.
    """

    slices: range
    rows: Edges
    columns: Edges


def voxels_of(given: GivenBox, geometry: Geometry, *, where: str) -> Box:
    """The box of voxels that encloses a given box, cut to the image.

    Args:
        given: in voxels or millimetres.
        geometry: the image's grid.
        where: the case, for messages.

    Raises:
        DatasetError: the box and the image have no voxel in common.
    """
    if isinstance(given, VoxelBox):
        wanted = given.box
    else:
        edges = _edges_in_voxels(given, geometry)
        low, high = np.floor(edges.min(0) + EDGE_TOLERANCE), np.ceil(edges.max(0) - EDGE_TOLERANCE)
        wanted = tuple((int(a), max(int(a) + 1, int(b))) for a, b in zip(low, high, strict=True))  # type: ignore[assignment]
    cut = [(max(low, 0), min(high, size)) for (low, high), size in zip(wanted, geometry.shape, strict=True)]
    if any(low >= high for low, high in cut):
        raise DatasetError(
            f"{where}: the box {wanted} (voxels; Z, Y, X) lies outside the image of {geometry.shape} voxels. Check its "
            "unit, its coordinates (LPS or RAS) and the order of its numbers."
        )
    return (cut[0], cut[1], cut[2])


def is_oblique(given: GivenBox, geometry: Geometry) -> bool:
    """Whether a box's sides run along other directions than the image's axes, so that its voxels enclose more than
    it."""
    if isinstance(given, VoxelBox):
        return False
    turned = np.linalg.solve(np.reshape(geometry.direction, (3, 3)), np.reshape(given.axes, (3, 3)))
    return bool(((np.abs(turned) > EDGE_TOLERANCE).sum(0) > 1).any())


def relaxed_box(box: Box, share: float, shape: Shape) -> Box:
    """A box whose sides are moved outwards by a share of its length along each axis, at least by one voxel.

    Args:
        box: half-open voxel ranges.
        share: e.g. 0.2: a box of 10 voxels grows by 2 at either end.
        shape: of the image, which cuts it.
    """
    grown = []
    for (low, high), size in zip(box, shape, strict=True):
        step = max(1, round(share * (high - low)))
        grown.append((max(0, low - step), min(size, high + step)))
    return (grown[0], grown[1], grown[2])


def box_prompt(box: Box, properties: CaseProperties) -> BoxPrompt | None:
    """Where a box of the original image lies on the preprocessed grid.

    Where slices were resampled, one more slice at either end is predicted: the original slices between them are
    interpolated.

    Args:
        box: half-open voxel ranges in the original image.
        properties: of the case.

    Returns:
        None where the box lies outside the crop: there is nothing but zeros in it.
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
    """A box cut to the crop, in its voxels, turned to the network's axes; None where nothing is left."""
    cut = [
        (max(low, start) - start, min(high, stop) - start)
        for (low, high), (start, stop) in zip(box, properties.crop, strict=True)
    ]
    if any(low >= high for low, high in cut):
        return None
    return properties.turn.ranges((cut[0], cut[1], cut[2]), properties.cropped_shape)


def _edges_in_voxels(given: WorldBox, geometry: Geometry) -> np.ndarray:
    """(8, 3) corners in array order (Z, Y, X), measured from the image's edge: voxel i reaches from i to i + 1."""
    signs = np.array(list(itertools.product((-0.5, 0.5), repeat=3)))
    corners = np.asarray(given.centre) + (signs * np.asarray(given.sides)) @ np.reshape(given.axes, (3, 3)).T
    indices = np.linalg.solve(geometry.affine, np.c_[corners, np.ones(8)].T)[:3]
    return indices.T[:, ::-1] + 0.5
