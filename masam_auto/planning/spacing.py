"""The target spacing of a data set, and shapes after resampling to it. Axes are the fingerprint's (Z, Y, X) unless
called permuted.
"""

import math

import numpy as np

from masam_auto.core.errors import PlanError
from masam_auto.core.fingerprint import Fingerprint
from masam_auto.core.geometry import Shape, Triple, permute

ANISOTROPY = 3.0  # Source: nnU-Net v2, default_experiment_planner and default_resampling


def choose_spacing(fingerprint: Fingerprint, wanted: Triple | None) -> tuple[Triple, str]:
    """Choose the target spacing in mm, in the file's axis order.

    Args:
        fingerprint: measurements.
        wanted: the user's choice, or None.

    Raises:
        PlanError: the user's choice is not three positive numbers.

    Source: nnU-Net v2, `default_experiment_planner`: medians; but the 10th percentile for an axis that is more than 3
        times as coarse as the others and has less than a third of their voxels.
    """
    if wanted is not None:
        if len(wanted) != 3 or not all(math.isfinite(value) and value > 0 for value in wanted):
            raise PlanError(f"target spacing must be three positive numbers in mm, in the order Z, Y, X; got {wanted}")
        return _triple(wanted), "set by hand"
    spacings = np.array([case.spacing for case in fingerprint.cases])
    target = np.median(spacings, axis=0)
    sizes = np.median([case.shape_after_cropping for case in fingerprint.cases], axis=0)
    count = f"of {len(spacings)} cases" if len(spacings) > 1 else "of the only case"
    worst = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != worst]
    finest_allowed = float(target[others].max())
    coarse = target[worst] > ANISOTROPY * finest_allowed and sizes[worst] * ANISOTROPY < sizes[others].min()
    if fingerprint.is_video or not coarse:
        return _triple(target), f"median {count}"
    tenth = float(np.percentile(spacings[:, worst], 10))
    median = float(target[worst])
    target[worst] = tenth if tenth >= finest_allowed else finest_allowed + 1e-5
    return (
        _triple(target),
        f"in-plane median {count}; axis {worst} is more than 3 times as coarse (median {median:.3g} mm) with less than "
        f"a third of the voxels, so its 10th percentile is used ({tenth:.3g} mm)",
    )


def median_spacing(fingerprint: Fingerprint) -> Triple:
    """Median spacing in mm over the cases, axis by axis."""
    return _triple(np.median([case.spacing for case in fingerprint.cases], axis=0))


def median_extent(fingerprint: Fingerprint) -> Triple:
    """Median physical extent in mm of the cropped cases, axis by axis."""
    return _triple(np.median([np.multiply(c.shape_after_cropping, c.spacing) for c in fingerprint.cases], axis=0))


def shapes_at(fingerprint: Fingerprint, spacing: Triple) -> np.ndarray:
    """(cases, 3) shapes of the cropped cases after resampling to `spacing`, at least 1."""
    shapes = [np.multiply(c.shape_after_cropping, c.spacing) / spacing for c in fingerprint.cases]
    return np.maximum(np.round(shapes), 1)


def median_shape(fingerprint: Fingerprint, spacing: Triple, axis_order: tuple[int, int, int]) -> Shape:
    """Median shape at the target spacing in permuted order."""
    shape = permute(tuple(round(value) for value in np.median(shapes_at(fingerprint, spacing), axis=0)), axis_order)
    return (shape[0], shape[1], shape[2])


def _triple(values: np.ndarray | Triple) -> Triple:
    return (float(values[0]), float(values[1]), float(values[2]))
