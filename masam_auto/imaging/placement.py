"""Compare two label files by their place in the patient: turn different voxel axes, and report different grids."""

import logging
from pathlib import Path

import numpy as np

from masam_auto.core.errors import DatasetError
from masam_auto.core.geometry import Geometry
from masam_auto.core.turning import STAY

logger = logging.getLogger(__name__)

SAME_PLACE = 0.5  # of a voxel: beyond this, the nearest voxel is another one


def turned_onto(array: np.ndarray, own: Geometry, grid: Geometry) -> tuple[np.ndarray, Geometry]:
    """Turn (..., Z, Y, X) and its grid to the axes of another grid. Unchanged if the axes of either are unknown."""
    turn = own.turn_to(grid.axes)
    return (array, own) if turn == STAY else (np.ascontiguousarray(turn.array(array)), own.turned(turn))


def turned_to_place(array: np.ndarray, own: Geometry, grid: Geometry) -> tuple[np.ndarray, Geometry]:
    """Like `turned_onto` if the result is exactly on the other grid; else unchanged, as the header may be wrong."""
    turned, found = turned_onto(array, own, grid)
    return (turned, found) if grid.difference(found) is None else (array, own)


def check_same_shape(found: tuple[int, ...], expected: tuple[int, ...], *, what: str, other: str) -> None:
    """Check that two arrays have the same shape (Z, Y, X). Raises DatasetError with their names."""
    if found != expected:
        raise DatasetError(
            f"{what} has shape {found}, but {other} {expected} (Z, Y, X). Both must be on one grid: replace one of "
            "the files."
        )


def labels_on_grid(
    labels: np.ndarray, own: Geometry, grid: Geometry, *, path: Path, reference: Path, checked: bool = False
) -> np.ndarray:
    """Bring labels to the voxel order of a reference.

    Args:
        labels: (Z, Y, X) of the file `path`.
        own, grid: the grid of the labels, and that of the reference.
        path, reference: the files, for messages.
        checked: the reference is a data set's own label file, already compared with its image. If its header still
            differs, only a warning is logged.

    Raises:
        DatasetError: the shapes differ, or voxels are more than half a voxel away from those of the reference.
    """
    labels, own = turned_onto(labels, own, grid)
    check_same_shape(labels.shape, grid.shape, what=str(path), other="its reference")
    difference = grid.difference(own)
    if difference is None:
        return labels
    if own.oriented and grid.oriented and not checked and (shift := grid.shift(own)) > SAME_PLACE:
        raise DatasetError(
            f"{path} is on another grid than {reference}: {difference} there, so that voxels are up to {shift:.3g} "
            "voxels apart. Resample one onto the other's grid, or correct the wrong header."
        )
    logger.warning("%s: grid differs from the reference's: %s; using the reference's", path, difference)
    return labels
