"""The non-empty part of an image: nnU-Net's non-zero mask, and bounding boxes of masks and label values."""

from collections.abc import Iterable

import cc3d
import numpy as np
from skimage.measure import regionprops

from masam_auto.core.geometry import Box


def nonzero_box(image: np.ndarray) -> Box:
    """Bounding box of the voxels that are not zero in at least one channel.

    Filling holes does not change a bounding box, so this is nnU-Net's crop without that cost.

    Args:
        image: (C, Z, Y, X).

    Returns:
        Half-open ranges along Z, Y and X; the whole image if every voxel is zero.

    Example:
        >>> from masam_auto.imaging.crop import nonzero_box
        >>> image = np.zeros((1, 6, 8, 8))  # (C, Z, Y, X)
        >>> image[:, 2:4, 1:5, 3:6] = 7
        >>> nonzero_box(image)  # from, to along Z, Y, X
        ((2, 4), (1, 5), (3, 6))
    """
    return bounding_box(_nonzero(image)) or whole_box(image.shape[1:])


def bounding_box(mask: np.ndarray) -> Box | None:
    """Half-open bounding box of a (Z, Y, X) boolean mask; None if it is empty."""
    # Not acvl-utils' function: it takes 5 to 47 times as long, imports torch, and gives the whole array if empty.
    ranges = []
    columns = np.asarray(mask.any(axis=0))  # small; the in-plane ranges need no second pass over the volume
    for line in (mask.any(axis=(1, 2)), columns.any(axis=1), columns.any(axis=0)):
        filled = np.flatnonzero(line)
        if len(filled) == 0:
            return None
        ranges.append((int(filled[0]), int(filled[-1]) + 1))
    return _box(ranges)


def value_boxes(labels: np.ndarray) -> dict[int, Box]:
    """Half-open bounding box of each value above 0 in a (Z, Y, X) label map."""
    return {region.label: _box((part.start, part.stop) for part in region.slice) for region in regionprops(labels)}


def box_around(boxes: Iterable[Box]) -> Box | None:
    """The smallest box that contains all of these; None if there are none."""
    axes = list(zip(*boxes, strict=True))
    return _box((min(low for low, _ in axis), max(high for _, high in axis)) for axis in axes) if axes else None


def whole_box(shape: tuple[int, ...]) -> Box:
    """The box of a whole (Z, Y, X) array."""
    return _box((0, size) for size in shape)


def crop_to(array: np.ndarray, box: Box) -> np.ndarray:
    """View of the last three axes of an array within a box.

    Example:
        >>> from masam_auto.imaging.crop import crop_to
        >>> crop_to(np.zeros((1, 6, 8, 8)), ((2, 4), (1, 5), (3, 6))).shape  # (C, Z, Y, X)
        (1, 2, 4, 3)
    """
    (z0, z1), (y0, y1), (x0, x1) = box
    return array[..., z0:z1, y0:y1, x0:x1]


def nonzero_mask(image: np.ndarray) -> np.ndarray:
    """Voxels that are not zero in at least one channel, with holes filled.

    A hole is a region of zeros without a path of face neighbours to the border of the volume, so a single slice has
    none.

    Args:
        image: (C, Z, Y, X).

    Returns:
        (Z, Y, X) bool.

    Source: nnU-Net's `create_nonzero_mask` (scipy's binary_fill_holes); connected components give the same, faster.
    """
    mask = _nonzero(image)
    if mask.all():
        return mask
    empty = cc3d.connected_components(~mask, connectivity=6)
    border = np.zeros(int(empty.max()) + 1, dtype=bool)
    for axis in range(3):
        for end in (0, -1):
            border[np.unique(np.take(empty, end, axis=axis))] = True
    border[0] = False  # 0 marks the mask itself
    return ~border[empty]


def _nonzero(image: np.ndarray) -> np.ndarray:
    mask = image[0] != 0
    for channel in image[1:]:
        mask |= channel != 0
    return mask


def _box(ranges: Iterable[tuple[int, int]]) -> Box:
    z, y, x = ranges
    return z, y, x
