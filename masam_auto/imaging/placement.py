"""Two label files by place in the patient: voxel axes in another order or direction are turned, another grid is
told."""

import logging
from pathlib import Path

import numpy as np

from masam_auto.core.errors import DatasetError
from masam_auto.core.geometry import Geometry
from masam_auto.core.turning import STAY

logger = logging.getLogger(__name__)

SAME_PLACE = 0.5  # of a voxel: beyond, the nearest voxel is another one


def turned_onto(array: np.ndarray, own: Geometry, grid: Geometry) -> tuple[np.ndarray, Geometry]:
    """(..., Z, Y, X) and its grid, turned to the axes of another grid; as they are where either's axes are unknown."""
    turn = own.turn_to(grid.axes)
    return (array, own) if turn == STAY else (np.ascontiguousarray(turn.array(array)), own.turned(turn))


def turned_to_place(array: np.ndarray, own: Geometry, grid: Geometry) -> tuple[np.ndarray, Geometry]:
    """As `turned_onto` where the turned array lies on the very grid, else as it is: then the header may be wrong."""
    turned, found = turned_onto(array, own, grid)
    return (turned, found) if grid.difference(found) is None else (array, own)


def check_same_shape(found: tuple[int, ...], expected: tuple[int, ...], *, what: str, other: str) -> None:
    """Check that two arrays are of one shape (Z, Y, X). Raises DatasetError with their names."""
    if found != expected:
        raise DatasetError(
            f"{what} has shape {found}, but {other} {expected} (Z, Y, X). Both must lie on one grid: replace one of "
            "the files."
        )


def labels_on_grid(
    labels: np.ndarray, own: Geometry, grid: Geometry, *, path: Path, reference: Path, checked: bool = False
) -> np.ndarray:
    """Labels voxel by voxel as those of a reference.

    Args:
        labels: (Z, Y, X) of the file `path`.
        own, grid: where they lie, and where the reference does.
        path, reference: the files, for messages.
        checked: the reference is a data set's own label file, which was compared with its image: where its header still
            tells another place, a warning is enough.

    Raises:
        DatasetError: the shapes differ, or voxels lie more than half a voxel from those of the reference.
    """
    labels, own = turned_onto(labels, own, grid)
    check_same_shape(labels.shape, grid.shape, what=str(path), other="its reference")
    difference = grid.difference(own)
    if difference is None:
        return labels
    if own.oriented and grid.oriented and not checked and (shift := grid.shift(own)) > SAME_PLACE:
        raise DatasetError(
            f"{path} lies on another grid than {reference}: {difference} there, so that voxels are up to {shift:.3g} "
            "voxels apart. Resample one onto the other's grid, or correct the header that is wrong."
        )
    logger.warning("%s: grid differs from the reference's: %s; the reference's counts", path, difference)
    return labels
